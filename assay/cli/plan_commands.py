"""Handlers of `assay plan`."""

from __future__ import annotations

from dataclasses import replace

from assay.cli.output import say
from assay.cli.run_commands import Arguments, load
from assay.planning.cluster import cluster_of_job, read_cluster, shipped_clusters
from assay.training_recipe import steps_before
from governance.errors import BudgetReached, ConfigError
from governance.files import write_text
from slurm.config import with_site


def plan(arguments: Arguments) -> None:
    """Print the plan of a run on a cluster.

    A refusal follows all lines.
    """
    from assay.dry_run import online_teacher_of
    from assay.experiments.scaling_experiment import expected_loss
    from assay.planning.corrections import correction_from
    from assay.planning.layouts import layouts
    from assay.planning.plan import Correction, PlanInputs, make_plan, refuse
    from assay.planning.plan_budget import over_budget
    from assay.planning.plan_page import as_page, as_text, layout_rows, lines, refusals
    from assay.start_preflight import corpus_figures, require_site_rules

    arguments.needs = "model"
    loaded, runtime = load(arguments, "data prepare")
    require_site_rules(loaded)
    section = with_site(loaded.config.slurm, loaded.folder)
    if not (arguments.cluster or section.cluster):
        raise ConfigError(
            f"--cluster: name the nodes: {', '.join(shipped_clusters())}, or a file of your own; or set slurm.cluster"
        )
    cluster = read_cluster(arguments.cluster) if arguments.cluster else cluster_of_job(section, loaded.folder)
    nodes = arguments.nodes or section.nodes
    vocabulary, _, document_tokens, tokens = corpus_figures(loaded, runtime)
    teacher, more = None, []
    if loaded.config.train.distillation is not None:
        teacher, words = online_teacher_of(loaded, runtime, vocabulary)
        more.append(f"teacher     {words}")
        say(more[-1], plan=more[-1:])
    correction = Correction(document_tokens=document_tokens)
    begun = steps_before(loaded, runtime.root)
    inputs = PlanInputs(vocabulary, cluster, nodes, teacher, correction, section.spare_nodes, begun)
    if arguments.from_run:
        inputs = replace(inputs, correction=correction_from(arguments.from_run, loaded, inputs))
    found = make_plan(loaded, inputs)
    for line in lines(found):
        say(line, plan=[line])
    if loss := expected_loss(loaded, vocabulary, runtime.root, tokens):
        about = f"{loss['loss']:.3f} ({loss['low']:.3f} to {loss['high']:.3f}) nats per token, by {loss['law']}"
        about += ", which was fitted on another corpus" * loss["other_corpus"]
        more.append(f"loss        {about}")
        say(more[-1], loss=loss)
    around = layouts(loaded, inputs)
    rows = layout_rows(found, around)
    say(
        "\n" + "\n".join([*as_text(rows), *refusals(around)]),
        layouts=[one.as_dict() for one in around],
        **found.as_dict(),
    )
    if over := over_budget(found, loaded.policy.energy_budget):
        more.append(f"budget      {over.words}")
    if arguments.html:
        title = f"{arguments.config} on {nodes} node(s) of {cluster.name}"
        write_text(arguments.html, as_page(found, around, title, more))
        say(f"page: {arguments.html}", page=arguments.html)
    refuse(loaded, inputs, found.step)
    if over and over.certain:
        raise BudgetReached(over.words)
    if over:
        say(more[-1], budget=over.words)
