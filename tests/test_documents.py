"""Every snippet of the README runs as written, and every file that a document names is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HOME

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, document: str = "README.md") -> list[str]:
    text = (ROOT / document).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def environment(dsn: str) -> dict[str, str]:
    home = Path(os.environ[HOME]) / "documents"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"COMMAND_REGISTRY_HOME": str(home), "DATABASE_URL": dsn, "PATH": path}


def run(arguments: list[str], dsn: str, place: Path) -> str:
    done = subprocess.run(
        arguments, cwd=place, env=environment(dsn), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("snippet", blocks("python"), ids=["asyncio", "threads", "transaction", "outcomes"])
def test_a_python_snippet_of_the_readme_runs_when_pasted_into_a_file(snippet: str, dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "pasted.py"
    file.write_text(snippet, "utf-8")
    printed = run([sys.executable, "-W", "error", str(file)], dsn, tmp_path)
    assert "command_id='cmd_" in printed
    if "at version 2" in snippet:
        assert re.search(r"^1 CommandCreated .* scheduler$", printed, re.MULTILINE)
        assert re.search(r"^at version 2: .*DISPATCHED", printed, re.MULTILINE)


def test_the_python_snippet_about_projectors_runs_when_pasted_into_a_file(dsn: str, tmp_path: Path) -> None:
    [snippet] = blocks("python", "docs/projections.md")
    run([sys.executable, "-W", "error", "-c", snippet], dsn, tmp_path)


@pytest.mark.parametrize("snippet", blocks("python", "docs/testing-your-registry.md"))
def test_a_snippet_about_testing_passes_when_pasted_into_a_file(snippet: str, dsn: str, tmp_path: Path) -> None:
    (tmp_path / "test_pasted.py").write_text(snippet, "utf-8")
    options = ["-q", "-o", "asyncio_mode=auto", "--command-registry-dsn", dsn]
    if "def test_" in snippet:
        assert " passed" in run([sys.executable, "-m", "pytest", *options, "test_pasted.py"], dsn, tmp_path)
    else:
        run([sys.executable, "-W", "error", "test_pasted.py"], dsn, tmp_path)


def test_the_shell_snippets_of_the_readme_run_as_written(dsn: str, tmp_path: Path) -> None:
    makes, *shell = blocks("sh")
    assert makes == "make demo\nmake test\n"  # the one is run by .ci/run, the other runs this
    printed = run(["bash", "-euo", "pipefail", "-c", "".join(shell)], dsn, tmp_path)
    assert "deployment_activity_v1" in printed
    assert '"jsonrpc":"2.0"' in printed
    assert (tmp_path / "log.jsonl").read_text("utf-8").count("CommandCreated") >= 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text("utf-8")
    named = re.findall(r"\]\(([^)#:]+)\)", text)
    named += re.findall(r"`((?:eventstore|projections|registry|tests|docs)/[\w/.]+)`", text)
    for name in named:
        beside = document.parent / name
        assert beside.exists() or (ROOT / name).exists(), name
