"""Names and places by presidio, over a local spaCy pipeline.

Only presidio's recognizer of the pipeline's own entities runs; structured types are this program's. The pipeline's
tagger, parser and lemmatizer are left out: they take more than half of its time, and entities do not depend on them,
except where a sentence ends within an entity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.pii.detections import Detection
from data_pipeline.pii.entities.finder_settings import Finder, FinderConfig, meanings
from governance.errors import ManifestError, MissingInput

_BATCH = 64  # windows; presidio's own default is 1
_NO_ENTITIES = frozenset(
    ("tok2vec", "tagger", "morphologizer", "parser", "senter", "attribute_ruler", "lemmatizer", "trainable_lemmatizer",
     "textcat", "textcat_multilabel", "entity_linker")
)  # fmt: skip
"""Factories of spaCy's components that set no entity."""
_ENTITIES = frozenset(("ner", "beam_ner", "transformer", "curated_transformer"))
"""Factories of components that set entities, or vectors for them, and read what no other component sets."""
_RULERS = ("entity_ruler", "span_ruler")


def open_windows(config: FinderConfig, path: Path) -> Finder:
    """The finder for windows of text.

    Raises:
        MissingInput: presidio or spaCy is not installed.
        ManifestError: spaCy cannot load the pipeline, or it finds no entities.
        ConfigError: none of its labels means a name or a place.
    """
    pipeline = _pipeline(path)
    labels = _entity_labels(pipeline)
    if not labels:
        raise ManifestError(f"data.pii.finder: the pipeline in {path} states no entity labels. Give one with `ner`.")
    types = meanings(labels, config)
    _leave_out_what_finds_nothing(pipeline)
    analyzer = _analyzer(pipeline, config.language, list(types))

    def find(windows: Sequence[str]) -> list[list[Detection]]:
        results = analyzer.analyze_iterator(
            windows, config.language, batch_size=_BATCH, entities=list(types), score_threshold=config.min_score
        )
        return [
            [Detection(result.start, result.end, types[result.entity_type]) for result in found] for found in results
        ]

    return find


def _pipeline(path: Path) -> Any:
    try:
        import presidio_analyzer  # noqa: F401
        import spacy
    except ImportError as error:
        raise MissingInput(
            "data.pii.finder: presidio-analyzer is not installed. Install it with: pip install presidio-analyzer"
        ) from error
    try:
        return spacy.load(path)
    except Exception as error:  # whatever its components raise
        message = str(error).strip().split("\n")[0][:200]
        raise ManifestError(f"data.pii.finder: spaCy cannot load {path}: {message}") from error


def _entity_labels(pipeline: Any) -> list[str]:
    parts = (pipeline.get_pipe(name) for name in ("ner", *_RULERS) if name in pipeline.pipe_names)
    return sorted({label for part in parts for label in part.labels})


def _leave_out_what_finds_nothing(pipeline: Any) -> None:
    """Disable components that set no entity.

    All stay where there is a component of another kind, such as a ruler, since it may read what they set. A shared
    `tok2vec` stays where a recognizer reads it.
    """
    factories = {name: pipeline.get_pipe_meta(name).factory for name in pipeline.pipe_names}
    if not set(factories.values()) <= _NO_ENTITIES | _ENTITIES:
        return
    recognizers = {name for name, factory in factories.items() if factory in _ENTITIES}
    for name, component in list(pipeline.pipeline):
        read_by = getattr(component, "listening_components", ())
        if factories[name] in _NO_ENTITIES and recognizers.isdisjoint(read_by):
            pipeline.disable_pipe(name)


def _analyzer(pipeline: Any, language: str, labels: list[str]) -> Any:
    """Presidio with one recognizer, whose entities keep the pipeline's labels."""
    from presidio_analyzer import AnalyzerEngine, BatchAnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import SpacyRecognizer

    kept = NerModelConfiguration(model_to_presidio_entity_mapping={label: label for label in labels})
    engine = SpacyNlpEngine(ner_model_configuration=kept)
    engine.nlp = {language: pipeline}
    registry = RecognizerRegistry(
        recognizers=[SpacyRecognizer(supported_language=language, supported_entities=labels)],
        supported_languages=[language],
    )
    return BatchAnalyzerEngine(AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language]))
