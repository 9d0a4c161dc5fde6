"""MMLU's questions from CSV files, in the authors' form and in that of Hugging Face's data set. Knows files; asks nothing.

The authors': dev/SUBJECT_dev.csv and test/SUBJECT_test.csv (or val/..._val.csv), lines `question,A,B,C,D,letter`, no header. Hugging Face's (cais/mmlu written as
CSV): a header with `question`, `answer` (a number from 0, or a letter), `choices` (a list) or A to D; the same files, or one dev.csv and one test.csv (or
validation.csv) with a column `subject`. Source: Hendrycks et al., arXiv 2009.03300.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from ...models import textfile
from .store import EvaluationError

LETTERS = ("A", "B", "C", "D")
FILE_BYTES_MAX = 64 << 20
PARTS = ("test", "val", "validation")
Kept = TypeVar("Kept")
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)


class Choice(NamedTuple):
    """A question with four answers; right is the letter; subject: as the file says it, "" where it does not."""

    question: str
    answers: tuple[str, str, str, str]
    right: str
    subject: str = ""

    def text(self, solved: bool) -> str:
        """As it is read: up to `Answer:`, or with the letter."""
        lines = [self.question, *(f"{letter}. {a}" for letter, a in zip(LETTERS, self.answers, strict=True)), "Answer:"]
        return "\n".join(lines) + (f" {self.right}\n\n" if solved else "")


class Subject(NamedTuple):
    """One subject: its questions, its solved examples, and the files they are from."""

    asked: tuple[Choice, ...]
    examples: tuple[Choice, ...]
    files: tuple[Path, ...]


def subjects(folder: Path, only: Sequence[str]) -> dict[str, Subject]:
    """Subjects by name, all of them or those in `only`. Raises EvaluationError when files are missing or a line is wrong."""
    home = folder / "data" if (folder / "data").is_dir() else folder
    part = next((p for p in PARTS if (home / p).is_dir()), None)
    whole = next((home / f"{p}.csv" for p in PARTS if (home / f"{p}.csv").is_file()), None)
    found = {re.sub(rf"_{part}$", "", path.stem): path for path in sorted((home / part).glob(f"*_{part}.csv"))} if part else {}
    if not found and whole is not None:
        return _chosen(_by_subject(whole, home / "dev.csv"), only, whole)
    if not found:
        raise EvaluationError(f"{folder} has no test/SUBJECT_test.csv and no test.csv: give the folder of MMLU's data.tar, or Hugging Face's cais/mmlu as CSV")
    named = _chosen(found, only, home / str(part))
    return {name: _read(path, home / "dev" / f"{name}_dev.csv") for name, path in named.items()}


def _read(asked: Path, dev: Path) -> Subject:
    return Subject(read_choices(asked), read_choices(dev), (asked, dev))


def _by_subject(asked: Path, dev: Path) -> dict[str, Subject]:
    """What two files say of all subjects."""
    both: list[dict[str, list[Choice]]] = []
    for path in (asked, dev):
        groups: dict[str, list[Choice]] = {}
        for choice in read_choices(path):
            if not choice.subject:
                raise EvaluationError(f"{path} has no column subject: give a file for each subject, test/SUBJECT_test.csv")
            groups.setdefault(choice.subject, []).append(choice)
        both.append(groups)
    for name in both[0]:
        if name not in both[1]:
            raise EvaluationError(f"{dev} has no examples of {name}, which {asked.name} asks for: take both from one data set")
    return {name: Subject(tuple(rows), tuple(both[1][name]), (asked, dev)) for name, rows in sorted(both[0].items())}


def _chosen(found: Mapping[str, Kept], only: Sequence[str], where: Path) -> dict[str, Kept]:
    for name in only:
        if name not in found:
            raise EvaluationError(f"--only {name}: {where} has {len(found)} subjects, such as {next(iter(found))}")
    return {name: found[name] for name in only or found}


def read_choices(path: Path) -> tuple[Choice, ...]:
    """A file's questions, in either form. Raises EvaluationError naming the file and the line."""
    try:
        rows = csv.reader(line + "\n" for line in textfile.lines(path, FILE_BYTES_MAX, EvaluationError))
        out = tuple(_choices(path, rows))
    except csv.Error as error:
        raise EvaluationError(f"cannot read {path}: {error}") from None
    if not out:
        raise EvaluationError(f"{path} is empty: give MMLU's files")
    return out


def _choices(path: Path, rows: Iterator[list[str]]) -> Iterator[Choice]:
    columns: list[str] | None = None
    for number, row in enumerate(rows, 1):
        names = [name.strip().lower() for name in row]
        if number == 1 and {"question", "answer"} <= set(names):
            columns = names
            if "choices" not in names and not {"a", "b", "c", "d"} <= set(names):
                raise EvaluationError(f"{path} line 1 names question and answer: it must name choices as well, or A, B, C and D")
            continue
        made = _plain(row) if columns is None else _named(dict(zip(columns, row, strict=False)))
        if made is None:
            form = "a question, four answers and one of A, B, C, D" if columns is None else "a question, a list of four choices and an answer from 0 to 3"
            raise EvaluationError(f"{path} line {number} must be {form}")
        yield made


def _plain(row: Sequence[str]) -> Choice | None:
    if len(row) != 6 or row[5].strip() not in LETTERS:
        return None
    return Choice(row[0].strip(), (row[1].strip(), row[2].strip(), row[3].strip(), row[4].strip()), row[5].strip())


def _named(row: dict[str, str]) -> Choice | None:
    answers = _list(row["choices"]) if row.get("choices") else [row.get(letter.lower(), "") for letter in LETTERS]
    right = row.get("answer", "").strip()
    right = LETTERS[int(right)] if right in ("0", "1", "2", "3") else right
    if len(answers) != 4 or right not in LETTERS or not row.get("question", "").strip():
        return None
    return Choice(row["question"].strip(), (answers[0].strip(), answers[1].strip(), answers[2].strip(), answers[3].strip()), right, row.get("subject", "").strip())


def _list(text: str) -> list[str]:
    """A list of texts as JSON, Python or NumPy (no commas) write it; empty for anything else."""
    try:
        found = json.loads(text)
        return [str(x) for x in found] if isinstance(found, list) else []
    except (ValueError, RecursionError):
        return [re.sub(r"\\(.)", r"\1", single or double) for single, double in _QUOTED.findall(text)]
