"""A table of several tests or runs: seeds together, with differences and their intervals.

    python -m tools.table results/*/results.json --against base --format latex > table.tex
    python -m tools.table log/sysu_log/*.jsonl            the last evaluation of each run
    python -m tools.table docs/runs/large.jsonl --against base --spread error

Rows are methods and the settings that tell them apart. A record's row is the mean of its trials; of several
seeds, their mean and its spread.
"""
from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Sequence

from datasets.types import FEATURES, SUM
from tables import Table, as_text, columns, grids, legend, make_tables, read_runs
from command_line import Parser, filled, run


def as_markdown(tables: Sequence[Table]) -> str:
    """A table of Markdown for each protocol and feature."""
    parts = []
    for table, cells in zip(tables, grids(tables)):
        head, *lines = [f"| {' | '.join(line)} |" for line in cells]
        parts.append("\n".join([f"**{table.title}**\n", head, "| --- " * len(cells[0]) + "|", *lines]))
    return "\n\n".join([*parts, f"({legend(tables)})"])


def as_csv(tables: Sequence[Table]) -> str:
    """One line a row, fractions with all their digits."""
    measures, compared = columns(tables)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    spread = "standard error" if tables[0].error else "standard deviation"
    writer.writerow(["protocol", "feature", "method", "source", "seeds",
                     *(word for name in measures for word in (name, f"{name} {spread}")),
                     *(f"difference {name}{part}" for name in compared for part in ("", " low", " high"))])
    for table in tables:
        for row in table.rows:
            writer.writerow([table.protocol, table.feature, row.label, row.source, row.seeds or "",
                             *(part for name in measures for part in row.cells.get(name, ("", ""))),
                             *(part for name in compared
                               for part in row.differences.get(name, ("", "", "")))])
    return file.getvalue().rstrip("\n")


def as_latex(tables: Sequence[Table]) -> str:
    """A table of booktabs: a part for each protocol and feature, the best in bold, the second underlined.

    It fits a paper's column, or with differences or published rows its page.
    """
    measures, compared = columns(tables)
    wide = "*" if compared or any(row.source for table in tables for row in table.rows) else ""
    cells = grids(tables)
    width = len(cells[0][0])
    lines = [r"% \usepackage{booktabs}", rf"\begin{{table{wide}}}[t]",
             rf"\centering\{'scriptsize' if wide else 'footnotesize'}\setlength{{\tabcolsep}}{{1.5pt}}",
             rf"\caption{{Of the rows measured here, the best is bold, the second underlined; "
             rf"{latex(legend(tables))}.}}\vspace{{4pt}}",
             rf"\begin{{tabular}}{{@{{}}l{'r' * (width - 1)}@{{}}}}", r"\toprule",
             " & ".join(map(latex, cells[0][0])) + r" \\"]
    for table, (_, *rows) in zip(tables, cells):
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\scriptsize {latex(table.title)}}} \\"]
        for row, (label, seeds, *values) in zip(table.rows, rows):
            best = [table.best(name) for name in measures if not row.source]
            marked = [mark(cell, *pair) for cell, pair in itertools.zip_longest(values, best, fillvalue=())]
            lines.append(" & ".join([latex(label), seeds, *marked]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", rf"\end{{table{wide}}}"])


def mark(cell: str, best: str = "", second: str = "") -> str:
    """A cell in LaTeX, its spread or interval small, its value bold if `best`, underlined if `second`."""
    value, *rest = cell.replace("± ", "±").split(" ", 1)
    command = {best: r"\textbf{%s}", second: r"\underline{%s}"}.get(value, "%s") if value else "%s"
    words = command % value + "".join(rf"{{\tiny {latex(part)}}}" for part in rest)
    return re.sub(r"-(?=\d)", "$-$", words)


def latex(text: str) -> str:
    """Text as LaTeX writes it."""
    signs = {"±": r"$\pm$", "Δ": r"$\Delta$", "†": r"$^\dagger$",
             **{sign: f"\\{sign}" for sign in "%_&#${}"}}
    return re.sub("|".join(map(re.escape, signs)), lambda found: signs[found[0]], text)


FORMATS = {"text": as_text, "markdown": as_markdown, "csv": as_csv, "latex": as_latex}


def build_parser() -> Parser:
    """The arguments of the command line."""
    parser = Parser(description="Print a table of records of test.py, or of logs of train.py.")
    parser.add_argument("runs", nargs="+", type=filled, metavar="results.json|run.jsonl",
                        help="records of test.py, logs of train.py, or lines of docs/runs")
    parser.add_argument("--against", type=filled, metavar="METHOD",
                        help="show the paired difference of each row to this one, with its 95 %% interval")
    parser.add_argument("--feature", nargs="+", choices=(*FEATURES, SUM), default=[],
                        help="features that are shown (default: all there are)")
    parser.add_argument("--spread", choices=("deviation", "error"), default="deviation",
                        help="what follows ±, over seeds: their standard deviation, or the error of the mean")
    parser.add_argument("--published", action="store_true", help="add the papers' rows, marked †")
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the table")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    args = build_parser().parse_args(words)
    tables = make_tables(read_runs(args.runs), args.against, args.feature, args.published,
                         error=args.spread == "error")
    print(FORMATS[args.format](tables))


if __name__ == "__main__":
    run(main)
