"""The table of stages against the stages that the product makes."""

import ast
from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.prepare import stage_names
from governance.checks import audit, suites
from governance.checks.bias import bias, fates
from governance.stage_order import CORPUS_STAGES, STAGES

ROOT = Path(__file__).parents[2]
FOR_ONE_STAGE = {
    "fetch", "lists", "language_model", "classifier", "evaluation_sets", "megatron", "data_docs", "text_index",
}  # fmt: skip
OUTSIDE_A_RUN = {
    "documents", "model_audit", "memorisation", "classification", "cross_validation", "claims", "claim_language",
    "claim_recall", "scaling", "mixture", "receipts", "training_audit", "verbatim",
}  # fmt: skip
"""And a KPI's plan and test, whose names are constants."""


def recipes(package):
    """Stage names of the recipes that a package's code makes."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            made = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Recipe"
            if made and isinstance(name := node.args[0], ast.Constant):
                yield name.value


def test_each_stage_that_the_product_makes_has_a_row():
    rows = {row.name for row in STAGES}
    assert len(rows) == len(STAGES)
    corpus = set(recipes("data_pipeline"))
    assert corpus - FOR_ONE_STAGE == {row.name for row in CORPUS_STAGES}
    made = corpus.union(*map(recipes, ("assay", "governance", "pretrain")))
    assert made - FOR_ONE_STAGE - OUTSIDE_A_RUN == rows - {"train"}  # its name is a constant of pretrain/train.py


def test_each_optional_stage_of_the_corpus_is_switched_on_by_its_section():
    for row in CORPUS_STAGES:
        field = DataConfig.model_fields.get(row.switch or row.name)
        assert not row.optional or (field is not None and not field.default)
    sources = [{"name": "one", "type": "text", "paths": ["*"], "licence": "MIT"}]
    plain = DataConfig.model_validate({"sources": sources})
    assert stage_names(plain) == tuple(row.name for row in CORPUS_STAGES if not row.optional)


def test_readers_have_the_orders_that_digests_hold():
    """Inputs of an audit and of a bias audit enter their manifests in this order."""
    assert audit.REQUIRED == ("ingest", "clean", "dedup", "redact", "tokenizer", "encode")
    assert audit.OPTIONAL == ("code", "filter", "classify", "paragraphs", "substrings", "decontaminate", "mix", "bias")
    assert bias.FILTERS == (
        "clean", "code", "filter", "classify", "dedup", "paragraphs", "substrings", "decontaminate",
    )  # fmt: skip
    assert ("ingest", *bias.FILTERS, "redact", "encode") == suites.FUNNEL
    assert fates.ORDER[-1] == "kept"
    assert set(bias.FILTERS) < set(fates.ORDER)
