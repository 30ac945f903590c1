"""README's benchmark numbers are those of the JSON files."""

import importlib.util
import pathlib

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"


def test_the_readme_table_is_generated_from_the_results():
    spec = importlib.util.spec_from_file_location("table", BENCHMARKS / "table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    text = table.README.read_text()
    assert table.readme(text, BENCHMARKS / "results") == text
