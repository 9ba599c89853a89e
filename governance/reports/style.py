"""The look of the report: one style sheet, system fonts, light and dark, screen and paper."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--page:#fbfaf7;--card:#fff;--ink:#1d2126;--soft:#59616b;--line:#dedbd3;--faint:#efede7;
--a:#17637f;--b:#b1540d;--c:#4b7a2b;--d:#7a4a9e;--e:#9a6b00;--f:#5f6b7a;--good:#1c6b3a;--warn:#8a5a00;--bad:#a8231c;
--on:#fff}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--card:#1b1f23;--ink:#e7e5df;--soft:#a3abb4;--line:#343a41;
--faint:#252a2f;--a:#6cb8d6;--b:#e59a5c;--c:#93c26f;--d:#c09ae0;--e:#d8b04c;--f:#9aa6b5;--good:#62c287;--warn:#e0b355;
--bad:#f08a80;--on:#14171a}}
*{box-sizing:border-box}
html{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font-variant-numeric:tabular-nums lining-nums}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:1rem;background:var(--card);padding:.5rem 1rem}
header,main,footer,nav{max-width:70rem;margin:0 auto;padding:0 1.5rem}
header{padding-top:3rem}
h1,h2,h3,h4{line-height:1.2;font-weight:650;text-wrap:balance}
h1{font-size:1.9rem;letter-spacing:-.015em;margin:.2rem 0 .4rem}
h2{font-size:1.35rem;letter-spacing:-.01em;margin:0 0 .35rem}
h3{font-size:1rem;margin:2rem 0 .5rem}h4{font-size:.9rem;margin:1.2rem 0 .3rem}
p{margin:.4rem 0;max-width:46rem}
.eyebrow{font-size:.78rem;letter-spacing:.09em;text-transform:uppercase;color:var(--soft);margin:0}
.lead,.note,.none{color:var(--soft)}.note,.none{font-size:.88rem}
a{color:var(--a);text-underline-offset:.15em}a:focus-visible,.scroll:focus-visible{outline:2px solid var(--a);
outline-offset:2px}
code{font:.86em ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
nav{margin-top:1.6rem}nav ol{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;margin:0;
padding:.7rem 0;border:solid var(--line);border-width:1px 0;font-size:.88rem}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}
section{margin:3rem 0;scroll-margin-top:1rem}main section>h2{padding-bottom:.4rem;
border-bottom:1px solid var(--line)}
.verdict{display:flex;gap:1.4rem;align-items:center;flex-wrap:wrap;margin:1.4rem 0 .6rem}
.badge{font-weight:750;font-size:1.55rem;letter-spacing:.03em;line-height:1;color:var(--on);background:var(--f);
padding:.75rem 1.15rem;border-radius:.5rem}
.badge.good{background:var(--good)}.badge.warn{background:var(--warn)}.badge.bad{background:var(--bad)}
.verdict p{margin:0}.verdict strong{font-size:1.1rem;font-weight:600}
.stop{font-size:1.75rem;font-weight:700;line-height:1.2;color:var(--bad);border-left:.4rem solid var(--bad);
padding:.3rem 0 .3rem 1rem;margin:1.2rem 0;max-width:none}
.stop small{display:block;font-size:1rem;font-weight:400;color:var(--ink);margin-top:.3rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(13rem,100%),1fr));gap:1px;background:var(--card);
border:1px solid var(--line);border-radius:.6rem;overflow:hidden;margin:1.6rem 0}
.tiles>div{padding:1rem 1.15rem;box-shadow:0 0 0 1px var(--line)}.tiles dt{font-size:.82rem;color:var(--soft)}
.tiles dd{margin:0;font-size:1.5rem;font-weight:600;letter-spacing:-.01em;line-height:1.3}
.tiles dd small{display:block;font-size:.8rem;font-weight:400;color:var(--soft);letter-spacing:0;line-height:1.45}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.4rem;margin:1rem 0;font-size:.92rem}
.facts dt{color:var(--soft)}.facts dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:1rem 0}.graph{width:auto;max-width:none;height:auto;margin:.6rem 0}
.evs{font:400 .68rem/1 ui-monospace,Menlo,Consolas,monospace;letter-spacing:0;white-space:nowrap}
.ev{color:var(--soft);text-decoration:none;border:1px solid var(--line);border-radius:.25rem;padding:0 .25rem}
.ev:hover,.ev:focus-visible{color:var(--a);border-color:var(--a)}
.cited{font-size:.8rem;color:var(--soft);margin:.1rem 0}
:target{background:var(--faint);outline:2px solid var(--a);outline-offset:2px}
main:focus,main:target,section:target{outline:0;background:none}
.first{margin:1.2rem 0;border:1px solid var(--line);border-left:.35rem solid var(--a);border-radius:.5rem;
background:var(--card);padding:.9rem 1.15rem}
.first h2,.next h2{font-size:.82rem;font-weight:500;color:var(--soft);letter-spacing:0;margin:0;padding:0;border:0}
.first .top{margin:.1rem 0;max-width:none}.first strong{font-size:1.3rem;font-weight:650;line-height:1.3}
.first .why{display:block;overflow-wrap:anywhere}.next{margin:0 0 1.6rem;font-size:.9rem}
.next ol{margin:.3rem 0 0;padding:0 0 0 1.3rem;columns:2;column-gap:2.5rem}
.next li{break-inside:avoid;padding:.1rem 0;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;font-size:.88rem}
caption{text-align:left;font-weight:600;padding:.3rem 0 .5rem;font-size:.92rem}
th,td{text-align:left;vertical-align:top;padding:.42rem .9rem .42rem 0;border-bottom:1px solid var(--faint)}
th:last-child,td:last-child{padding-right:0}
thead th{font-weight:500;color:var(--soft);border-bottom-color:var(--line);white-space:nowrap;vertical-align:bottom}
tbody th{font-weight:500}.n{text-align:right;white-space:nowrap}tr.total>*{font-weight:650}
td .bar{min-width:6rem}th code{white-space:nowrap}th .note{font-weight:400;overflow-wrap:anywhere}
td.wide{min-width:15rem}
.pill{display:inline-block;font-size:.78rem;font-weight:600;border:1px solid currentColor;border-radius:99rem;
padding:0 .55rem;line-height:1.5;white-space:nowrap;color:var(--f)}
.pill.good{color:var(--good)}.pill.warn{color:var(--warn)}.pill.bad{color:var(--bad)}
svg{display:block;width:100%}.bar{height:.7rem}.plot{height:100%;overflow:visible}
.track{fill:var(--faint)}.f-a{fill:var(--a)}.f-b{fill:var(--b)}.f-c{fill:var(--c)}.f-d{fill:var(--d)}.f-e{fill:var(--e)}
.f-f{fill:var(--f)}.f-gone{fill:var(--b)}.k-gone{background:var(--b)}.hist{height:7rem}
.ends{display:flex;justify-content:space-between;font-size:.76rem;color:var(--soft);margin:.15rem 0}
figure{margin:0}.grid{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
.line{fill:none;stroke-width:1.7;stroke-linejoin:round;vector-effect:non-scaling-stroke}
.dot{fill:none;stroke-width:7;stroke-linecap:round;vector-effect:non-scaling-stroke}
.span{stroke:var(--a);stroke-width:2;vector-effect:non-scaling-stroke}
.s-a{stroke:var(--a)}.s-b{stroke:var(--b)}.s-c{stroke:var(--c)}.s-d{stroke:var(--d)}.s-e{stroke:var(--e)}
.key{display:inline-block;width:.75rem;height:.75rem;border-radius:.2rem;margin-right:.4rem;vertical-align:-.05rem}
.k-a{background:var(--a)}.k-b{background:var(--b)}.k-c{background:var(--c)}.k-d{background:var(--d)}
.k-e{background:var(--e)}.k-f{background:var(--f)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.85rem;color:var(--soft);margin:.2rem 0}
.chart{margin:1.2rem 0}.chart figcaption{font-size:.9rem}.unit{color:var(--soft);font-size:.84rem}
.axes{display:grid;grid-template-columns:max-content 1fr;grid-template-rows:15rem auto;gap:.35rem .6rem;
margin-top:.6rem}
.y{display:flex;flex-direction:column;justify-content:space-between;text-align:right;font-size:.76rem;color:var(--soft)}
.y span{line-height:0}.x{grid-column:2;display:flex;justify-content:space-between;font-size:.76rem;color:var(--soft)}
.multiples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(15rem,100%),1fr));gap:1.2rem 2.2rem;
align-items:end}
.multiples .axes{grid-template-rows:7rem auto}.multiples .chart{margin:.4rem 0}.multiples .line{stroke-width:1}
.multiples .unit{display:block}
.steps{display:grid;gap:.3rem;margin:.4rem 0;font-size:.82rem}
.steps>div{display:grid;grid-template-columns:6.4rem 1fr max-content;gap:.7rem;align-items:center}
.steps .wide{grid-template-columns:6.4rem 1fr 11rem}.steps b{font-weight:500}.steps span:last-child{text-align:right}
.sample{border-left:3px solid var(--line);padding:.1rem 0 .1rem .9rem;margin:.7rem 0;font-size:.86rem}
.sample p{margin:.1rem 0;max-width:none;overflow-wrap:anywhere}.sample .note{font-size:.8rem}
.rail{list-style:none;margin:1rem 0;padding:0}
.rail>li{position:relative;padding:0 0 1.3rem 1.7rem;border-left:2px solid var(--line);margin-left:.4rem}
.rail>li:last-child{border-color:transparent;padding-bottom:0}
.rail>li::before{content:"";position:absolute;left:-.46rem;top:.3rem;width:.8rem;height:.8rem;border-radius:50%;
background:var(--a);box-shadow:0 0 0 3px var(--page)}
.rail b{margin-right:.6rem}.rail ul{list-style:none;padding:0;margin:.3rem 0 0;font-size:.86rem}
.rail li li{padding:.1rem 0;color:var(--soft);overflow-wrap:anywhere}
footer{color:var(--soft);font-size:.85rem;padding-bottom:3rem}
@media (max-width:34rem){html{font-size:15px}header,main,footer,nav{padding-left:1rem;padding-right:1rem}
header{padding-top:1.6rem}h1{font-size:1.5rem}.stop{font-size:1.3rem}.facts{grid-template-columns:1fr;gap:0}
.facts dd{margin-bottom:.5rem}.steps .wide{grid-template-columns:6.4rem 1fr max-content}.steps .extra{display:none}
.axes{grid-template-rows:11rem auto}.next ol{columns:1}}
@media print{@page{size:A4;margin:16mm 15mm}:root{--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;
--faint:#e4e4e4;--a:#17637f;--b:#b1540d;--c:#4b7a2b;--d:#7a4a9e;--e:#9a6b00;--f:#5f6b7a;--good:#1c6b3a;--warn:#8a5a00;
--bad:#a8231c;--on:#fff;color-scheme:light}html{font-size:10.5pt}header,main,footer,nav{max-width:none;padding:0}
header{padding:0}nav,.skip{display:none}section{margin:1.8rem 0}
h2,h3,h4,figcaption,caption,.cited,.legend{break-after:avoid}
.chart,.sample,tr,.rail>li,.tiles>div,.first{break-inside:avoid}.graph{max-width:100%}.scroll{overflow:visible}thead{display:table-header-group;break-after:avoid}
td.wide{min-width:10rem}
.badge,.f-a,.f-b,.f-c,.f-d,.f-e,.f-f,.track,.key,.rail>li::before{print-color-adjust:exact;
-webkit-print-color-adjust:exact}table{font-size:8.6pt}td,th{padding-right:.5rem}}
"""
