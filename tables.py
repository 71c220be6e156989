"""Tables of several records or runs: seeds together, with differences and their intervals."""
from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

import results
from bootstrap import LEVEL, RESAMPLES, Difference, QueryScores, paired_difference
from datasets.types import FEATURES, SUM
from results import MEASURES, WORDS, Record
from utils import UserError, as_user_error, warn

PAPERS = Path(__file__).resolve().with_name("papers.json")
SHOWN = ("rank-1", "rank-10", "rank-20", "mAP", "mINP")
COMPARED = ("rank-1", "mAP")  # whose differences are shown
TITLES = {name: name.replace("rank", "Rank") for name in MEASURES}
Values = Mapping[str, Mapping[str, float]]  # fractions by feature and measure


@dataclass(frozen=True)
class Run:
    """The scores of one trained model, from a record of test.py or the log of a run.

    protocol: what the scores of other runs must share to stand in one table; kind: what runs of other seeds
    share; seed: None where nothing says it; record, queries: of a test alone.
    """

    path: str
    protocol: str
    kind: Mapping[str, Any]
    seed: int | None
    values: Values
    record: Record | None = None
    queries: QueryScores | None = None


@dataclass(frozen=True)
class Group:
    """The runs of one method and its settings, one of each seed, and what tells them from other groups."""

    label: str
    runs: tuple[Run, ...]

    def values(self, feature: str, measure: str) -> np.ndarray:
        """A measure of each run that has it."""
        return np.array([run.values[feature][measure] for run in self.runs
                         if measure in run.values.get(feature, {})])


class Cell(NamedTuple):
    """Mean and spread over seeds, 0 for one of them; fractions."""

    mean: float
    spread: float = 0.0

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f}" + (f" ± {100 * self.spread:.2f}" if self.spread else "")


@dataclass(frozen=True)
class Row:
    """A row of a table: cells and differences to the reference by measure.

    source: of a published row, which is not measured here.
    """

    label: str
    seeds: int
    cells: Mapping[str, Cell]
    differences: Mapping[str, Difference] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Table:
    """The rows of one protocol and one feature; error: spreads are standard errors, not deviations."""

    protocol: str
    feature: str
    rows: tuple[Row, ...]
    error: bool = False

    @property
    def title(self) -> str:
        """Protocol and feature in words."""
        return f"{self.protocol}, {WORDS[self.feature]}"

    def best(self, measure: str) -> list[str]:
        """The two best values measured here of a column, as they are printed; none of one row."""
        values = {round(100 * row.cells[measure].mean, 2) for row in self.rows
                  if measure in row.cells and not row.source}
        return [f"{value:.2f}" for value in sorted(values)[:-3:-1]] if len(values) > 1 else []


# -------------------------------------------------------------------------------------------- what files hold
def read_runs(paths: Sequence[str]) -> list[Run]:
    """The runs that files hold: records (`.json`), logs of train.py, or lines of many runs (`.jsonl`).

    A log without an evaluation has no values.
    """
    stems = Counter(Path(path).stem for path in set(paths))
    runs: list[Run] = []
    for path in dict.fromkeys(paths):
        if Path(path).suffix == ".jsonl":
            name = Path(path).stem if stems[Path(path).stem] == 1 else str(Path(path).with_suffix(""))
            runs += log_runs(path, name)
        else:
            runs.append(record_run(path))
    return runs


def record_run(path: str) -> Run:
    """The run of a record."""
    record = results.read(path)
    model, size = record.model, f"{record.spec.height}x{record.spec.width}"
    settings = {name: value for name, value in model.settings.items()
                if name not in ("img_h", "img_w") and json.dumps(value) not in ("null", "false", "[]")}
    if "weights" in settings:  # earlier versions told the step too
        settings["weights"] = settings["weights"].removesuffix(", step 0")
    kind = {"": model.method, "arch": model.arch, **settings, "size": size, "+": " + ".join(record.extras)}
    return Run(path, record.protocol.name, kind, model.seed, record.summary("mean"), record,
               results.read_queries(path, record))


def read_lines(path: str) -> list[dict[str, Any]]:
    """The JSON lines of a file; raises `UserError` where they are not those of a run."""
    with as_user_error(f"{path}: no JSON lines of a run of train.py", "name a file below log/"):
        lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        if not lines or not all("epoch" in line or "row" in line and "seed" in line for line in lines):
            raise ValueError("no epochs")
        return lines


def log_runs(path: str, name: str) -> list[Run]:
    """The run of a log, as its last evaluation scored it; or the runs of a file with one on each line."""
    lines = read_lines(path)
    if "row" in lines[0]:
        return [Run(path, Path(path).stem, {"": line["row"]}, line["seed"], by_feature(line, whole=100))
                for line in lines]
    evaluated = [line for line in lines if any("/" in key for key in line)] or [{}]
    seed = re.search(r"_seed_(\d+)", name)
    dataset = Path(name).name.split("_")[0]
    return [Run(path, f"{dataset}, last evaluation, first trial", {"": re.sub(r"_seed_\d+", "", name)},
                seed and int(seed[1]), by_feature(evaluated[-1]))]


def by_feature(line: Mapping[str, Any], whole: int = 1) -> Values:
    """The figures "feature/measure" of a line, shares of 1 or of 100 (`whole`), by feature and measure."""
    return {feature: {measure: line[f"{feature}/{measure}"] / whole for measure in MEASURES
                      if f"{feature}/{measure}" in line} for feature in FEATURES}


# ----------------------------------------------------------------------------------------------------- groups
def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs of one protocol, those together that differ by a known seed alone."""
    groups: list[list[Run]] = []
    for run in runs:
        fitting = [group for group in groups if group[0].kind == run.kind
                   and None not in (run.seed, group[0].seed)
                   and run.seed not in [each.seed for each in group]]
        if fitting:
            fitting[0].append(run)
        else:
            groups.append([run])
    return [Group(label, tuple(group)) for label, group in zip(label_groups(groups), groups)]


def label_groups(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What tells each group from the others, in words: its method, and settings that are not those of all."""
    kinds = [group[0].kind for group in groups]
    names = list(dict.fromkeys(name for kind in kinds for name in kind))
    differing = [name for name in names if len({json.dumps(kind.get(name)) for kind in kinds}) > 1]
    told = [name for name in names if name in differing or name in ("", "+")]
    labels = [" ".join(say(name, kind[name]) for name in told if kind.get(name)) for kind in kinds]
    if all(group[0].record is None for group in groups):
        labels = shorten(labels)
    paths = [path if len(path) <= 40 else f"…{path[-40:]}" for path in (group[0].path for group in groups)]
    return [label if labels.count(label) == 1 else f"{label} ({path})" for label, path in zip(labels, paths)]


def say(name: str, value: Any) -> str:
    """A setting in a few words; of a digest, its beginning."""
    values = [] if value is True else value if isinstance(value, list) else [value]
    words = [word[:8] if re.fullmatch("[0-9a-f]{40,}", word) else word for word in map(str, values)]
    return " ".join([name.replace("_", " "), *words]).strip()


def shorten(names: Sequence[str]) -> list[str]:
    """Names of runs without the words that all of them have."""
    words = [name.split("_") for name in names]
    shared = set.intersection(*map(set, words))
    labels = ["_".join(word for word in name if word not in shared) or name[:2][-1] for name in words]
    return labels if len(set(labels)) == len(names) else list(names)


# ----------------------------------------------------------------------------------------------------- tables
def make_tables(runs: Sequence[Run], against: str | None = None, features: Sequence[str] = (),
                published: bool = False, error: bool = False) -> list[Table]:
    """A table for each protocol and feature.

    against: the label of the group to which the others' differences are shown; error: the spread is the
    standard error of the mean, not the standard deviation over seeds.
    """
    if lacking := [run.path for run in runs if not any(run.values.values())]:
        raise UserError(f"{lacking[0]}: no evaluation in it; name the log of a run with one")
    tables = []
    for protocol in dict.fromkeys(run.protocol for run in runs):
        groups = group_runs([run for run in runs if run.protocol == protocol])
        named = [group for group in groups if against in (group.label, group.label.split()[0])]
        if against and not named:
            raise UserError(f"--against {against}: {', '.join(group.label for group in groups)} found; name "
                            "one of these")
        if against:
            require_one_protocol([run for group in groups for run in group.runs if run.record])
        facts = published_rows(protocol, groups) if published else []
        for feature in features or (*FEATURES, SUM):
            rows = [make_row(group, feature, named[0] if named else None, error) for group in groups
                    if len(group.values(feature, "mAP")) == len(group.runs)]
            if rows:
                tables.append(Table(protocol, feature, (*facts, *rows), error))
    if not tables:
        raise UserError(f"--feature {' '.join(features)}: none of the runs was scored with it; leave it out")
    return tables


def make_row(group: Group, feature: str, reference: Group | None, error: bool) -> Row:
    """Means, spreads and differences of a group."""
    cells, differences = {}, {}
    for measure in SHOWN:
        values = group.values(feature, measure)
        if len(values):
            spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            cells[measure] = Cell(float(values.mean()), spread / len(values) ** 0.5 if error else spread)
    for measure in COMPARED if reference and reference is not group else ():
        if found := difference(reference, group, feature, measure):
            differences[measure] = found
    return Row(group.label, len(group.runs), cells, differences)


def difference(first: Group, second: Group, feature: str, measure: str) -> Difference | None:
    """The second group's mean less the first's, with an interval; None where nothing pairs them.

    Of records: by the bootstrap over queries' persons, draws and seeds. Of logs: Student's, over the seeds
    that both have.
    """
    if all(run.queries is not None for run in (*first.runs, *second.runs)):
        sides = [[run.queries.sums(feature, measure) for run in group.runs if feature in run.queries.ap]
                 for group in (first, second)]
        return paired_difference(*sides) if all(sides) else None
    sides = [{run.seed: run.values[feature][measure] for run in group.runs
              if run.record is None and measure in run.values.get(feature, {})} for group in (first, second)]
    pairs = np.array([sides[1][seed] - sides[0][seed] for seed in sides[0] if seed in sides[1]])
    if len(pairs) < 2:
        return Difference(float(pairs[0]), np.nan, np.nan) if len(pairs) else None
    reach = stats.t.ppf((1 + LEVEL) / 2, len(pairs) - 1) * pairs.std(ddof=1) / len(pairs) ** 0.5
    return Difference(float(pairs.mean()), float(pairs.mean() - reach), float(pairs.mean() + reach))


def published_rows(protocol: str, groups: Sequence[Group]) -> list[Row]:
    """The papers' rows of a protocol; warns where it is not the papers' test that was run."""
    facts = json.loads(PAPERS.read_text(encoding="utf-8"))
    known = next((each for each in facts["protocols"] if protocol.startswith(each["begins"])
                  and protocol.endswith(each["ends"])), None)
    if known is None:
        return []
    counts = {trial.counts.get("query_images") for group in groups for run in group.runs if run.record
              for trial in run.record.trials}
    if counts - {known["queries"]}:
        warn(f"--published: {known['queries']} queries published for {protocol}, "
             f"{', '.join(map(str, counts))} found: another test than the papers', nothing to compare with")
    return [Row(f"{fact['method']} ({fact['source']})", 0,
                {name: Cell(fact[name] / 100) for name in SHOWN if name in fact}, source=fact["source"])
            for fact in known["rows"]]


def compare(paths: Sequence[str]) -> str:
    """What `test.py --compare` prints: the table of records of one protocol, differences to the first.

    Raises `UserError` where protocols or queries differ; warns where a record has no file of its queries,
    and of one seed beside several.
    """
    runs = [record_run(path) for path in paths]
    require_one_protocol(runs)
    lacking = [run.path for run in runs if run.queries is None]
    if lacking and len(runs) > 1:
        warn(f"{results.queries_path(lacking[0])} is not there, so that no difference is tested; test that "
             "checkpoint again")
    groups = group_runs(runs)
    sizes = sorted(len(group.runs) for group in groups)
    if sizes[0] == 1 < sizes[-1]:
        warn("--compare: one record is set against several seeds, so that the interval leaves out how much "
             "its own seeds would differ; name as many of it")
    return as_text(make_tables(runs, groups[0].label))


def require_one_protocol(runs: Sequence[Run]) -> None:
    """Raise `UserError` unless all records are of one search, its trials, images and queries."""
    for run, name in itertools.product(runs[1:], ("name", "trials", "images")):
        mine, theirs = (getattr(each.record.protocol, name) for each in (runs[0], run))
        if mine != theirs:
            raise UserError(f"{runs[0].path} has {name} {str(mine)[:40]}, {run.path} has {str(theirs)[:40]}; "
                            "results of different protocols cannot be compared; test both in the same way")
    known = [run for run in runs if run.queries is not None]
    for run, name in itertools.product(known[1:], ("draws", "pids")):
        if not np.array_equal(getattr(known[0].queries, name), getattr(run.queries, name)):
            raise UserError(f"{results.queries_path(run.path)}: other queries than beside {known[0].path}; "
                            "test both checkpoints again")


# ------------------------------------------------------------------------------------------------------ words
def columns(tables: Sequence[Table]) -> tuple[list[str], list[str]]:
    """The measures that some row has, and those with a difference."""
    rows = [row for table in tables for row in table.rows]
    return ([name for name in SHOWN if any(name in row.cells for row in rows)],
            [name for name in COMPARED if any(name in row.differences for row in rows)])


def legend(tables: Sequence[Table]) -> str:
    """What ± and the intervals are, in words, as far as there are any."""
    rows = [row for table in tables for row in table.rows]
    spread = "error of the mean" if tables[0].error else "deviation"
    words = ["per cent"]
    if any(cell.spread for row in rows for cell in row.cells.values()):
        words += [f"± is the standard {spread} over seeds"]
    if any(row.differences for row in rows):
        words += [f"Δ: paired difference with its {100 * LEVEL:.0f} % interval, of records by {RESAMPLES:,} "
                  "bootstrap samples of persons, draws and seeds, of logs Student's over seeds"]
    if any(row.source for row in rows):
        words += ["† is published, not measured here"]
    return "; ".join(words)


def grids(tables: Sequence[Table]) -> list[list[list[str]]]:
    """The cells of each table as text, row by row; the first row has the heads of the columns."""
    measures, compared = columns(tables)
    head = ["method", "seeds", *map(TITLES.get, measures), *(f"Δ {TITLES[name]}" for name in compared)]
    return [[head, *([row.label + " †" * bool(row.source), str(row.seeds or ""),
                      *(str(row.cells.get(name, "-")) for name in measures),
                      *(str(row.differences.get(name, "")) for name in compared)]
                     for row in table.rows)] for table in tables]


def as_text(tables: Sequence[Table]) -> str:
    """Aligned columns."""
    rows = []
    for table, cells in zip(tables, grids(tables)):
        first, *widths = [max(map(len, column)) for column in zip(*cells)]
        lines = ["  ".join([line[0].ljust(first), *map(str.rjust, line[1:], widths)]) for line in cells]
        rows += [table.title, *map(str.rstrip, lines), ""]
    return "\n".join([*rows, f"({legend(tables)})"])
