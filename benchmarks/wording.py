"""Claim: the source reads in plain words. Counts of its wording, of any revisions; the standard library only.

    python benchmarks/wording.py [--list] [REVISION ...]

Without revisions, the working tree; ``--list`` shows what was counted, of the last one. Names, checks and messages are
those of ``lla_jax`` and ``lla_torch``, ``fmt: skip`` and ``tree_util`` those of every Python file.
"""

from __future__ import annotations

import argparse
import ast
import io
import pathlib
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("lla_jax", "interop/lla_torch")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "examples")

IRREGULAR = re.compile(
    r"begun|broken|brought|built|chosen|done|drawn|driven|found|given|gone|grown|held|hidden|"
    r"kept|known|laid|left|lost|made|redrawn|rewritten|said|sent|shown|sought|spent|taken|"
    r"told|undone|unknown|written"
)
ED_NOUNS = re.compile(r"embed|feed|need|seed|shed|speed|unembed")
ING_NOUNS = re.compile(r"embedding|padding|planning|reading|rounding|spacing|string|timing|warning")
LITTLE = re.compile(r"again|anew|as|at|by|for|from|in|into|like|of|off|on|once|out|to|together|up|with")
SCHEMA = re.compile(r"as_strided|as_strided_scatter|empty_strided|new_empty_strided|searchsorted")  # torch's names

REMEDY = re.compile(
    r"\b(such as|e\.g\.|give|pass|use|take|leave|try|raise|lower it|ask|set|make|wrap|install|choose|check|or None|"
    r"delete|remove|call|keep|put|name|write|convert|cast|rename|move|save|load|run|read|replace|draw|add|say|wait|"
    r"start|see|lla\.|jax\.|torch\.|one of|any of|known|there (is|are)|has|it takes|are:|from \d|between|at least|"
    r"at most|above 0|Is the|free|select|fit|exclude|freeze|drop|split|compute|create|open|change|train|evaluate)\b|"
    r"lla\.|--\w"
)
MISUSE = {"misuse", "ValueError", "TypeError", "Misuse", "Mistake", "ConversionError", "Refused"}
Found = Iterator[str]


def sources(root: pathlib.Path, folders: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(path from the root, text) of every Python file in some folders."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            yield str(path.relative_to(root)), path.read_text()


def public_names(root: pathlib.Path) -> set[str]:
    """The names that the stubs of the packages hand on."""
    stubs = [path.read_text() for folder in PACKAGES for path in (root / folder).rglob("*.pyi")]
    return {name for text in stubs for name in re.findall(r"\w+", text)}


def is_participle(word: str) -> bool:
    """Whether a word is a past or present participle, as English spells most of them."""
    past = bool(IRREGULAR.fullmatch(word)) or (word.endswith("ed") and not ED_NOUNS.fullmatch(word))
    return past or (word.endswith("ing") and len(word) > 4 and not ING_NOUNS.fullmatch(word))


def participle_names(root: pathlib.Path) -> Found:
    """Functions that end with a participle, or begin with one that governs the rest ("laid_out_like")."""
    public = public_names(root)
    for path, text in sources(root, PACKAGES):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name not in public and not SCHEMA.fullmatch(node.name):
                words = node.name.strip("_").split("_")
                if words[0] in ("is", "has", "was", "are", "check", "tell"):
                    continue
                governs = len(words) > 1 and is_participle(words[0]) and LITTLE.fullmatch(words[1])
                if governs or is_participle(words[-1]):
                    yield f"{path}:{node.lineno} {node.name}"


def lines_with(pattern: str) -> Callable[[pathlib.Path], Found]:
    """A counter of the lines in which a pattern occurs, this file left out."""

    def count(root: pathlib.Path) -> Found:
        for path, text in sources(root, FOLDERS):
            if not path.endswith(pathlib.Path(__file__).name):
                for number, line in enumerate(text.splitlines(), 1):
                    if re.search(pattern, line):
                        yield f"{path}:{number} {line.strip()}"

    return count


def integer_checks(root: pathlib.Path) -> Found:
    """``if`` with ``isinstance(x, int ...)`` whose body raises, outside the module of shared checks."""
    for path, text in sources(root, PACKAGES):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.If) and any(isinstance(each, ast.Raise) for each in ast.walk(node)):
                test = ast.unparse(node.test)
                if re.search(r"isinstance\(\w+, (int|\(?int\b|bool\)?.*int)", test) and "arguments" not in path:
                    yield f"{path}:{node.lineno} {test}"


def message_of(node: ast.Raise) -> str:
    """The literal text of a raised error."""
    return " ".join(
        each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)
    )


def raises(root: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(place, text) of every raised misuse whose text stands there."""
    for path, text in sources(root, PACKAGES):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                kind = ast.unparse(node.exc.func).rpartition(".")[2]
                if kind in MISUSE and (message := message_of(node)):
                    yield f"{path}:{node.lineno}", message


def messages_without_remedy(root: pathlib.Path) -> Found:
    """Errors whose text holds none of the words that remedies are made of; a person reads what is left."""
    yield from (f"{place} {text}" for place, text in raises(root) if not REMEDY.search(text))


def messages_with(phrase: str) -> Callable[[pathlib.Path], Found]:
    """A counter of errors that say their rule with a phrase."""
    return lambda root: (f"{place} {text}" for place, text in raises(root) if phrase in text)


def imports_between_tests(root: pathlib.Path) -> Found:
    """Imports of one test module by another."""
    for path, text in sources(root, ("tests",)):
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(r"\s*(from|import) .*\btest_\w+", line):
                yield f"{path}:{number} {line.strip()}"


def test_lengths(root: pathlib.Path) -> list[tuple[int, str]]:
    """(lines, path) of the test files, the longest first."""
    lengths = [(text.count("\n"), path) for path, text in sources(root, ("tests",)) if "test_" in path]
    return sorted(lengths, reverse=True)


COUNTERS: dict[str, Callable[[pathlib.Path], Found]] = {
    "functions named like participles": participle_names,
    "`fmt: skip`": lines_with(r"# fmt: skip"),
    "`tree_util.tree_`": lines_with(r"tree_util\.tree_"),
    "hand-written integer checks": integer_checks,
    "messages without a remedy": messages_without_remedy,
    'messages that say "the rule is"': messages_with("the rule is"),
    'messages that say "must"': messages_with("must "),
    "imports between test modules": imports_between_tests,
}


def unpack(revision: str, folder: pathlib.Path) -> pathlib.Path:
    """The tree of a revision, written into a folder."""
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def main() -> None:
    """Print the counts as a table, one column for each revision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="*", help="of git; by default the working tree")
    parser.add_argument("--list", action="store_true", help="show what was counted in the last one")
    options = parser.parse_args()
    revisions = options.revisions
    columns = revisions or ["working tree"]
    with tempfile.TemporaryDirectory() as scratch:
        roots = [unpack(rev, pathlib.Path(scratch, str(i))) for i, rev in enumerate(revisions)] or [ROOT]
        found = {name: [list(count(root)) for root in roots] for name, count in COUNTERS.items()}
        longest = [test_lengths(root)[0] for root in roots]
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, lists in found.items():
        print(f"| {name} | {' | '.join(str(len(each)) for each in lists)} |")
    print(f"| largest test file, lines | {' | '.join(f'{n} ({path})' for n, path in longest)} |")
    if options.list:
        for name, lists in found.items():
            print(f"\n{name}", *lists[-1], sep="\n  ")


if __name__ == "__main__":
    main()
