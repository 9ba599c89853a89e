"""Style sheet of the report: light, dark, screen, paper."""

from __future__ import annotations

_COLOURS = """
:root{color-scheme:light dark;--page:#fbfaf7;--card:#fff;--ink:#1d2126;--soft:#59616b;--line:#dedbd3;--faint:#ebe9e2;
--a:#17637f;--b:#b1540d;--c:#4b7a2b;--d:#7a4a9e;--e:#9a6b00;--f:#5f6b7a;--good:#1c6b3a;--warn:#8a5a00;--bad:#a8231c;
--on:#fff}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--card:#1b1f23;--ink:#e7e5df;--soft:#a3abb4;--line:#343a41;
--faint:#2a3036;--a:#6cb8d6;--b:#e59a5c;--c:#93c26f;--d:#c09ae0;--e:#d8b04c;--f:#9aa6b5;--good:#62c287;--warn:#e0b355;
--bad:#f08a80;--on:#14171a}}
"""

_FRAME = """
*{box-sizing:border-box}
html{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;-webkit-text-size-adjust:100%;
scroll-padding-top:3.4rem}
body{margin:0;background:var(--page);color:var(--ink);font-variant-numeric:tabular-nums lining-nums}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:1rem;background:var(--card);padding:.5rem 1rem;z-index:3}
header,main,footer,nav ol{max-width:78rem;margin:0 auto;padding:0 1.6rem}
header{padding-top:1.5rem}
h1,h2,h3,h4{line-height:1.2;font-weight:650;text-wrap:balance}
h1{font-size:1.75rem;letter-spacing:-.015em;margin:.1rem 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.5rem;letter-spacing:-.012em;margin:0 0 .6rem}
h2 small{font-size:.95rem;font-weight:400;letter-spacing:0;color:var(--soft);margin-left:.8rem}
h3{font-size:1.1rem;margin:0 0 .5rem}h4{font-size:.92rem;margin:1.1rem 0 .3rem}
p{margin:.35rem 0;max-width:52rem}
.eyebrow{font-size:.8rem;color:var(--soft);margin:0}
.lead{max-width:none;margin:0}.lead span{color:var(--soft);display:block}
.note,.none,.unit{color:var(--soft);font-size:.86rem}.unit{font-weight:400}
a{color:var(--a);text-underline-offset:.15em}
a:focus-visible,summary:focus-visible{outline:2px solid var(--a);outline-offset:2px}
code{font:.86em ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
nav{position:sticky;top:0;z-index:2;background:var(--page);border:solid var(--line);border-width:1px 0;margin-top:.9rem}
nav ol{display:flex;flex-wrap:wrap;gap:.1rem 2rem;list-style:none;padding-top:.5rem;padding-bottom:.5rem;
font-size:.88rem}
nav li{display:flex;flex-wrap:wrap;gap:0 .8rem}nav a{text-decoration:none}nav a:hover{text-decoration:underline}
nav li>a+a{color:var(--soft)}
.reader{margin:0;padding-top:1.9rem}.reader>section{margin:0 0 1rem}
.reader>section>h3{border-top:1px solid var(--line);padding-top:.7rem}
.ev{font:600 .6rem/1 system-ui,sans-serif;color:var(--soft);text-decoration:none;vertical-align:.35em;
margin-left:.35rem;padding:0 .12rem}
.ev:hover,.ev:focus-visible{color:var(--a);text-decoration:underline}
:target{outline:2px solid var(--a);outline-offset:2px}main:focus,main:target,section:target,dl:target{outline:0}
details{border:1px solid var(--line);border-radius:.4rem;background:var(--card);margin:.45rem 0}
summary{cursor:pointer;padding:.4rem .8rem;font-size:.9rem;color:var(--a);overflow-wrap:anywhere}
details[open]{padding:0 .8rem .6rem}
details[open]>summary{border-bottom:1px solid var(--line);margin:0 -.8rem .7rem}
.many{width:100%}.folds{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));
gap:.4rem .8rem;margin:.6rem 0;align-items:start}.folds>details{margin:0;min-width:0}
.folds>details[open]{grid-column:1/-1}
footer{color:var(--soft);font-size:.85rem;padding-top:2rem;padding-bottom:3rem}
"""

_FRONT = """
.verdict{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.3rem;align-items:center;margin:.8rem 0;
border:1px solid var(--line);border-left:.4rem solid var(--f);border-radius:.5rem;background:var(--card);
padding:.75rem 1.1rem}
.verdict.good{border-left-color:var(--good)}.verdict.warn{border-left-color:var(--warn)}
.verdict.bad{border-left-color:var(--bad)}
.badge{font-weight:750;font-size:1.45rem;letter-spacing:.03em;line-height:1;color:var(--on);background:var(--f);
padding:.7rem 1rem;border-radius:.45rem}
.badge.good{background:var(--good)}.badge.warn{background:var(--warn)}.badge.bad{background:var(--bad)}
.verdict p{margin:0;max-width:none}.verdict strong{font-size:1.08rem;font-weight:600}
.why{margin:.1rem 0;padding:0;list-style:none}.why li+li{margin-top:.3rem}
.stop{font-size:1.25rem;font-weight:700;line-height:1.2;color:var(--bad);margin:.6rem 0;max-width:none}
.stop small{display:block;font-size:.92rem;font-weight:400;color:var(--ink);margin-top:.2rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(13rem,100%),1fr));background:var(--card);
border:1px solid var(--line);border-radius:.5rem;overflow:hidden;margin:.8rem 0}
.tiles>div{padding:.65rem .9rem;box-shadow:0 0 0 1px var(--line)}.tiles dt{font-size:.8rem;color:var(--soft)}
.tiles dd{margin:0;font-size:1.5rem;font-weight:650;letter-spacing:-.01em;line-height:1.25}
.tiles dd span{font-size:.95rem;font-weight:500}
.tiles dd small{display:block;font-size:.78rem;font-weight:400;color:var(--soft);letter-spacing:0;line-height:1.4}
.first{margin:.8rem 0 0}.first>h2{font-size:.86rem;font-weight:500;color:var(--soft);letter-spacing:0;margin:0 0 .3rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(14rem,100%),1fr));gap:.8rem}
article{border:1px solid var(--line);border-top:.2rem solid var(--a);border-radius:.4rem;background:var(--card);
padding:.6rem .9rem}
article h3{font-size:1rem;margin:0 0 .2rem;overflow-wrap:anywhere}article p{margin:.1rem 0;font-size:.88rem;
overflow-wrap:anywhere}article h3 a{text-decoration:none;color:var(--ink)}article h3 a:hover{text-decoration:underline}
blockquote{margin:.3rem 0 0;padding-left:.7rem;border-left:2px solid var(--line);font-size:.82rem;color:var(--soft);
overflow-wrap:anywhere}
.next{display:flex;flex-wrap:wrap;gap:0 1.3rem;list-style:none;margin:.5rem 0 0;padding:0;font-size:.86rem}
"""

_TABLES = """
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(23rem,100%),1fr));gap:.15rem 2rem;margin:.2rem 0;
font-size:.9rem}
.facts>div{display:grid;grid-template-columns:8rem minmax(0,1fr);gap:.8rem}
.facts dt{color:var(--soft)}.facts dd{margin:0;overflow-wrap:anywhere}
.facts-box{display:flex;align-items:flex-start}.facts-box>dl{flex:1}
table{border-collapse:collapse;width:auto;min-width:min(100%,36rem);font-size:.86rem;margin:.5rem 0}
caption{text-align:left;font-weight:600;padding:.2rem 0 .35rem;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.23rem 1.3rem .23rem 0;border-bottom:1px solid var(--faint);
overflow-wrap:anywhere}
th:last-child,td:last-child{padding-right:0}
thead th{font-weight:500;color:var(--soft);border-bottom-color:var(--line);vertical-align:bottom;overflow-wrap:normal}
tbody th{font-weight:500}.n{text-align:right}td.n{overflow-wrap:normal}th .note,td .note{font-weight:400}
.alongside{display:flex;flex-wrap:wrap;gap:0 2.5rem;align-items:flex-start}
.alongside>.note{flex:1 1 18rem;margin-top:2rem}
.rows:has(>details[open])>table{display:none}.rows>details{margin-top:-.35rem;border:0;background:none}
.rows>details,.rows>details[open]{padding:0}.rows>details>summary,.rows>details[open]>summary{padding:.1rem 0;border:0;
margin:0}.rows>details>table{margin:.5rem 0}
q{font-size:.84rem;color:var(--soft)}td .note+q{display:block}
.pill{display:inline-block;font-size:.78rem;font-weight:600;border:1px solid currentColor;border-radius:99rem;
padding:0 .5rem;line-height:1.45;color:var(--f);overflow-wrap:normal;justify-self:start}
.pill.good{color:var(--good)}.pill.warn{color:var(--warn)}.pill.bad{color:var(--bad)}
"""

_FIGURES = """
svg{display:block;width:100%}.bar{height:.7rem}.plot{height:100%;overflow:visible}
.track,.f-faint{fill:var(--faint)}.f-a{fill:var(--a)}.f-b{fill:var(--b)}.f-c{fill:var(--c)}.f-d{fill:var(--d)}
.f-e{fill:var(--e)}.f-f{fill:var(--f)}.f-gone{fill:var(--b)}.k-gone{background:var(--b)}.hist{height:6rem}
.ends{display:flex;justify-content:space-between;font-size:.74rem;color:var(--soft);margin:.1rem 0;position:relative}
.ends .at{position:absolute;transform:translateX(-50%)}
figure{margin:0;min-width:0}figcaption{font-size:.88rem}.grid{stroke:var(--line);stroke-width:1;
vector-effect:non-scaling-stroke}
.line{fill:none;stroke-width:1.6;stroke-linejoin:round;vector-effect:non-scaling-stroke}
.dot{fill:none;stroke-width:6;stroke-linecap:round;vector-effect:non-scaling-stroke}
.span{stroke-width:1.6;vector-effect:non-scaling-stroke}
.s-a{stroke:var(--a)}.s-b{stroke:var(--b)}.s-c{stroke:var(--c)}.s-d{stroke:var(--d)}.s-e{stroke:var(--e)}
.s-f{stroke:var(--f)}.s-w{stroke:var(--b)}
.key{display:inline-block;width:.7rem;height:.7rem;border-radius:.2rem;margin-right:.35rem;vertical-align:-.05rem}
.k-a{background:var(--a)}.k-b{background:var(--b)}.k-c{background:var(--c)}.k-d{background:var(--d)}
.k-e{background:var(--e)}.k-f{background:var(--f)}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;font-size:.82rem;color:var(--soft);margin:.1rem 0;font-weight:400}
.chart{margin:.6rem 0}
.axes{display:grid;grid-template-columns:max-content minmax(0,1fr);grid-template-rows:8.4rem auto;gap:.3rem .5rem;
margin-top:.5rem}
.y{display:flex;flex-direction:column;justify-content:space-between;text-align:right;font-size:.74rem;color:var(--soft)}
.y span{line-height:0}.x{grid-column:2;display:flex;justify-content:space-between;font-size:.74rem;color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(16.5rem,100%),1fr));gap:.4rem 1.8rem;
margin:.6rem 0;align-items:end}
.charts .unit,.multiples .unit{display:block}
.multiples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(15rem,100%),1fr));gap:1rem 2rem;
align-items:end}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));gap:0 2.4rem;align-items:start}
.steps{display:grid;gap:.2rem;margin:.3rem 0;font-size:.82rem}
.steps>div{display:grid;grid-template-columns:7rem minmax(0,1fr) 9.5rem;gap:.7rem;align-items:center}
.steps b{font-weight:500;overflow-wrap:anywhere}.steps span:last-child{text-align:right}
.panels{columns:16rem;column-gap:1.8rem;margin:.4rem 0}.panel{break-inside:avoid;margin:0 0 .8rem}
.dots{font-size:.8rem}.dots>div{display:grid;grid-template-columns:7rem minmax(0,1fr);gap:.6rem;align-items:center;
line-height:1.3}
.dots>div>span{overflow-wrap:anywhere;color:var(--soft)}.dots .hit>span{color:var(--ink);font-weight:600}
.dots .bar{height:.75rem}.dots .axis>span{font-size:.74rem}
.strip{display:flex;flex-wrap:wrap;gap:.4rem 1.3rem;list-style:none;margin:.5rem 0;padding:0;font-size:.8rem}
.strip li{position:relative;border:1px solid var(--line);border-left:3px solid var(--a);border-radius:.3rem;
background:var(--card);padding:.15rem .55rem;min-width:0;overflow-wrap:anywhere}
.strip li.source{border-left-color:var(--e)}.strip li.child{border-left-color:var(--d)}
.strip li.made::after{content:"\\203A";position:absolute;right:-.85rem;top:.5rem;color:var(--soft)}
.strip span{display:block;color:var(--soft)}
.graph{max-width:100%;height:auto;margin:.6rem 0}
.sample{border-left:3px solid var(--line);padding:.1rem 0 .1rem .9rem;margin:.6rem 0;font-size:.86rem}
.sample p{margin:.1rem 0;max-width:none;overflow-wrap:anywhere}.sample .note{font-size:.8rem}
.rail{list-style:none;margin:.6rem 0;padding:0}
.rail>li{padding:0 0 .8rem 1rem;border-left:2px solid var(--line);margin-left:.4rem}
.rail b{margin-right:.6rem}.rail ul{list-style:none;padding:0;margin:.2rem 0 0;font-size:.86rem}
.rail li li{padding:.05rem 0;color:var(--soft);overflow-wrap:anywhere}
"""

_BLOCKS = (
    "{t},{t} tbody,{t} tr,{t} th,{t} td{{display:block}}{t} thead{{position:absolute;clip-path:inset(50%);width:1px;"
    "height:1px;overflow:hidden}}{t} tr{{border-bottom:1px solid var(--line);padding:.35rem 0}}"
    "{t} caption{{display:block}}{t} th,{t} td{{border:0;padding:.05rem 0;text-align:left}}"
    "{t} td{{display:grid;grid-template-columns:8.5rem minmax(0,1fr);gap:.7rem}}{t} td::before{{color:var(--soft)}}"
    "{t} td:empty{{display:none}}"
)
"""A table as blocks: each value behind the name of its column."""


def _names(table: str) -> str:
    return "".join(f"{table} td:nth-child({n})::before{{content:var(--c{n})}}" for n in range(2, 10))


_NARROW = f"""
@media (min-width:60.1rem){{.many th code{{white-space:nowrap}}}}
@media (max-width:60rem){{{_BLOCKS.format(t=".many")}{_names(".many")}}}
@media (max-width:40rem){{{_BLOCKS.format(t=".mid")}{_names(".mid")}}}
@media (max-width:40rem){{header,main,footer,nav ol{{padding-left:1rem;padding-right:1rem}}header{{padding-top:1rem}}
h1{{font-size:1.45rem}}h2 small{{display:block;margin:.2rem 0 0}}.verdict{{grid-template-columns:1fr}}
.badge{{justify-self:start}}nav{{position:static}}html{{scroll-padding-top:0}}nav li>a+a{{display:none}}
nav ol{{gap:.1rem 1.1rem}}.steps>div{{grid-template-columns:6.2rem minmax(0,1fr) 6.6rem;gap:.5rem}}
.facts>div{{grid-template-columns:1fr;gap:0;margin-bottom:.3rem}}.facts dt{{font-size:.8rem}}
.many td,.mid td{{grid-template-columns:6.5rem minmax(0,1fr)}}}}
"""

_PAPER = """
@media print{@page{size:A4;margin:14mm 13mm}:root{--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;
--faint:#e4e4e4;--a:#17637f;--b:#b1540d;--c:#4b7a2b;--d:#7a4a9e;--e:#9a6b00;--f:#5f6b7a;--good:#1c6b3a;--warn:#8a5a00;
--bad:#a8231c;--on:#fff;color-scheme:light}html{font-size:9.2pt}header,main,footer,nav ol{max-width:none;padding:0}
header{padding:0}nav,.skip,.ev{display:none}.reader{margin:0;break-before:page}.reader>section{margin-bottom:1rem}
#evidence{break-before:auto;margin-top:1.5rem}
h2,h3,h4,figcaption,caption,.legend{break-after:avoid}
.chart,.sample,tr,.rail>li,.tiles>div,article,.panel,.verdict,summary{break-inside:avoid}
thead{display:table-header-group;break-after:avoid}details{border-color:#ccc}
.tiles{grid-template-columns:repeat(5,1fr)}.tiles dd{font-size:1.15rem}.cards{grid-template-columns:repeat(3,1fr)}
.charts{grid-template-columns:repeat(3,1fr)}.pair{grid-template-columns:1fr 1fr}.panels{columns:3}
.badge,.f-a,.f-b,.f-c,.f-d,.f-e,.f-f,.f-gone,.f-faint,.track,.key{print-color-adjust:exact;
-webkit-print-color-adjust:exact}table{font-size:7.8pt}td,th{padding-right:.4rem}}
"""

CSS = _COLOURS + _FRAME + _FRONT + _TABLES + _FIGURES + _NARROW + _PAPER
