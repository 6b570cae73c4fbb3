"""What a stage read: records, splits, what was skipped and why, lengths in tokens. Nothing is left out in silence."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from rlhf.tables import table

MAX_FIELDS = 100  # of a source that are counted by name
MAX_PLACES = 5  # of each finding the first few places are named, the rest are counted
FINDINGS = {  # what is found in records that are read -> how it is told
    "over_long": "over the token limit, left out",
    "cut": "prompts cut, oldest turns or first words",
    "dropped": "prompts over data.max_prompt_tokens, left out",
    "split": "dialogues learned in several sequences, since earlier turns are rendered otherwise",
    "contradictions": "contradictory rankings",
    "disagreements": "rankings of annotators who disagree",
    "unused": "prompts of the test split, unused since data.heldout is set",
}
MANY_LEFT_OUT = 0.1  # share of the answers whose loss to the token limit is a warning


@dataclass
class SourceCount:
    """The figures of one source; `records` are the good ones, each counted once whatever the weight."""

    kind: str
    path: str
    weight: float = 1.0
    records: int = 0
    skipped: int = 0
    duplicates: int = 0
    sha256: str = ""
    fields_not_used: dict[str, int] = field(default_factory=dict)  # name -> records that have it

    def leave_out(self, names: Iterable[str]) -> None:
        """Counts the fields of a record that nothing reads."""
        for name in names:
            name = name if name in self.fields_not_used or len(self.fields_not_used) < MAX_FIELDS else "(others)"
            self.fields_not_used[name] = self.fields_not_used.get(name, 0) + 1


@dataclass
class Finding:
    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place):
        self.count += 1
        if len(self.places) < MAX_PLACES:
            self.places.append(place)


class DataReport:
    """Collects while data is read and tokenised; `as_dict` is data_report.json, `lines` is for the terminal."""

    def __init__(self):
        self._sources = {}  # (kind, path) -> SourceCount
        self._splits = {}  # kind -> {split: records}
        self._findings = {}  # (what, rule) -> Finding
        self._lengths = {}  # (kind, split) -> [tokens]
        self._num_answers = 0
        self._shown = {}  # kind -> its first record, as the model reads it

    def start_source(self, kind: str, path: str, weight: float = 1.0, sha256: str = "") -> SourceCount:
        """A fresh SourceCount, to be counted up while the source is read."""
        self._sources[kind, path] = SourceCount(kind, path, weight, sha256=sha256)
        return self._sources[kind, path]

    def find(self, what: str, place: str, rule: str = "") -> None:
        """Counts one finding, e.g. ("skipped", "a.jsonl:3", "field 'prompt' is missing")."""
        self._findings.setdefault((what, rule), Finding()).add(place)

    def duplicate(self, kind: str, path: str) -> None:
        self._sources[kind, path].duplicates += 1

    def see_answers(self, count: int) -> None:
        """Answers, or texts, that were encoded, whether they fit or not."""
        self._num_answers += count

    def over_long(self, where: str, tokens: int, limit: int) -> None:
        """A response or text that is left out because it has more tokens than the limit."""
        self.find("over_long", f"{where} ({tokens} tokens, limit {limit})")

    def cut(self, where: str, tokens: int, limit: int) -> None:
        """A prompt that lost its oldest turns, or the first words of its last one."""
        self.find("cut", f"{where} ({tokens} tokens, limit {limit})")

    def drop(self, where: str, tokens: int, limit: int) -> None:
        """A record that is left out because its prompt has more tokens than the limit."""
        self.find("dropped", f"{where} ({tokens} tokens, limit {limit})")

    def show(self, kind: str, text: str) -> None:
        """How a record is put before the model; of each kind the first one is kept."""
        self._shown.setdefault(kind, text)

    def count_splits(self, kind: str, splits: dict[str, list]) -> None:
        self._splits[kind] = {split: len(records) for split, records in splits.items()}

    def count_tokens(self, kind: str, split: str, lengths: list[int]) -> None:
        self._lengths.setdefault((kind, split), []).extend(lengths)

    def sources(self) -> list[dict]:
        """For the manifest: [{"path", "records", "sha256"}]."""
        by_path = {source.path: source for source in self._sources.values()}
        return [{"path": s.path, "records": s.records, "sha256": s.sha256} for s in by_path.values()]

    def findings(self, what: str) -> list[dict]:
        return [{"rule": rule, **asdict(found)} for (kind, rule), found in self._findings.items() if kind == what]

    def as_dict(self) -> dict:
        report = {
            "sources": [asdict(source) for source in self._sources.values()],
            "splits": self._splits,
            "tokens": {},
        }
        for (kind, split), lengths in self._lengths.items():
            report["tokens"].setdefault(kind, {})[split] = summary(lengths)
        report["skipped"] = self.findings("skipped")
        report["read_as"] = self.findings("read_as")
        for what in FINDINGS:
            report[what] = asdict(self._findings.get((what, ""), Finding()))
        report["answers"] = self._num_answers
        report["first"] = self._shown
        return report

    def lines(self) -> list[str]:
        report = self.as_dict()
        parts = (source_lines, field_lines, split_lines, token_lines, finding_lines, first_lines, warning_lines)
        return [line for part in parts for line in part(report)]


def summary(lengths: list[int]) -> dict:
    """Count, least, median, 95th percentile and most of lengths in tokens. Percentiles are by nearest rank."""
    if not lengths:
        return {"count": 0, "min": None, "median": None, "p95": None, "max": None}
    ordered = sorted(lengths)
    # -(-n * p // 100) is n * p / 100 rounded up, in whole numbers
    median, p95 = (ordered[-(-len(ordered) * percent // 100) - 1] for percent in (50, 95))
    return {"count": len(ordered), "min": ordered[0], "median": median, "p95": p95, "max": ordered[-1]}


def source_lines(report):
    columns = ("path", "kind", "weight", "records", "skipped", "duplicates")
    header = ("source", *columns[1:])
    return table([header, *([source[column] for column in columns] for source in report["sources"])])


def field_lines(report):
    """What nothing reads: for prompts it is there for reward rules."""
    lines = []
    for source in report["sources"]:
        counts = sorted(source["fields_not_used"].items(), key=lambda item: (-item[1], item[0]))
        what = "other fields, for rules" if source["kind"] in ("prompts", "heldout") else "fields not used"
        listed = ", ".join(f"{name} ({count})" for name, count in counts[:12]) + (", ..." if len(counts) > 12 else "")
        lines += [f"{source['path']} as {source['kind']}: {what}: {listed}"] if counts else []
    return lines


def split_lines(report):
    rows = [
        (kind, *(counts.get(split, 0) for split in ("train", "valid", "test")))
        for kind, counts in report["splits"].items()
    ]
    return table([("split", "train", "valid", "test"), *rows]) if rows else []


def token_lines(report):
    columns = ("count", "min", "median", "p95", "max")
    rows = []
    for kind, splits in report["tokens"].items():
        rows += [(f"{kind} {split}", *(figures[c] for c in columns)) for split, figures in splits.items()]
    return table([("tokens", *columns), *rows]) if rows else []


def finding_lines(report):
    named = [(f"skipped: {found['rule']}", found) for found in report["skipped"]]
    named += [(found["rule"], found) for found in report["read_as"]]
    named += [(told, report[what]) for what, told in FINDINGS.items()]
    return [f"{name}: {found['count']} ({places(found)})" for name, found in named if found["count"]]


def length_warnings(report: dict) -> list[str]:
    """What calls for caution in a data report, as `as_dict` gives it: many answers that no model sees."""
    left_out, seen = report["over_long"]["count"], report.get("answers", 0)  # an earlier version did not count them
    if left_out <= MANY_LEFT_OUT * seen:
        return []
    return [
        f"{left_out} of {seen} answers ({100 * left_out / seen:.0f} %) are over the token limit and left out: only the "
        "shorter ones are learned from. Raise data.max_response_tokens, or shorten the data"
    ]


def warning_lines(report):
    return [f"warning: {text}" for text in length_warnings(report)]


def first_lines(report):
    """The first record of each kind on one line, its line breaks as \\n; a long one without its middle."""
    return [f"the first of {kind}: {shortened(text)}" for kind, text in report["first"].items()]


def shortened(text: str, size: int = 600) -> str:
    text = repr(text)[1:-1]
    return text if len(text) <= size else f"{text[: size // 2]} ... {text[-size // 2 :]}"


def places(found):
    return ", ".join(found["places"]) + (", ..." if found["count"] > len(found["places"]) else "")
