"""S14: no line of ours runs text, reads a pickle, or lets a library do so; held over source, scripts and notebooks."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
PROGRAMS = sorted([*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "scripts").rglob("*.py")])
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "yaml"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "breakpoint"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "pandas.read_pickle", "pd.read_pickle"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"),
    *("tarfile.TarFile.extractall", "shutil.unpack_archive", "importlib.reload"),
}
METHODS = {"extractall", "extract", "unpack_archive", "read_pickle"}
"""Of any object: archives are read by member."""
NEVER_TRUE = {"shell", "trust_remote_code", "allow_pickle", "push_to_hub", "use_auth_token"}
SECRETS = {"hub_token", "push_to_hub_token", "token"}

# Where a name is imported, or a file run, that is no constant: each for its reason.
ALLOWED = {
    ("src/tunesmith/secrets.py", "importlib.import_module"): "the detectors named in the table above it",
    ("src/tunesmith/curate/numbers.py", "importlib.import_module"): "the countries named in the table above it",
    ("src/tunesmith/curate/stage.py", "runpy.run_path"): "the project's own scripts/curate_<task>.py",
    ("scripts/bench_documents.py", "runpy.run_path"): "scripts/curate_bank_answers.py, which knows the bank's passages",
}


def dangers(tree: ast.Module) -> Iterator[str]:
    """Each thing in a program that could run what is data."""
    for node in ast.walk(tree):
        where = f"line {getattr(node, 'lineno', 0)}"
        modules: set[str] = set()
        if isinstance(node, ast.Import):
            modules = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules = {(node.module or "").split(".")[0]}
            yield from (f"{where}: {n}" for n in {f"{node.module}.{alias.name}" for alias in node.names} & CALLS)
        yield from (f"{where}: {name}" for name in modules & MODULES)
        if isinstance(node, ast.Call):
            yield from (f"{where}: {found}" for found in dangers_of_call(node))
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                # RESERVED maps a key to the sentence that refuses it.
                told = isinstance(value, ast.Constant) and (value.value is False or isinstance(value.value, str))
                if isinstance(key, ast.Constant) and key.value in NEVER_TRUE and not told:
                    yield f"{where}: {key.value}: {ast.unparse(value)}"


def dangers_of_call(node: ast.Call) -> Iterator[str]:
    """What is wrong with one call."""
    name = ast.unparse(node.func)
    constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
    if name in CALLS or (isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
        yield f"{name}()"
    if name in {"importlib.import_module", "import_module", "runpy.run_path", "runpy.run_module"} and not constant:
        yield f"{name}()"
    if name.endswith("YAML") and any(k.arg == "typ" and ast.unparse(k.value) == "'unsafe'" for k in node.keywords):
        yield "an unsafe loader of YAML"
    if name.endswith("jinja2.Environment") and not any(keyword.arg == "loader" for keyword in node.keywords):
        yield "jinja outside its sandbox, for templates that are not our own"
    for keyword in node.keywords:
        harmless = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in NEVER_TRUE and not harmless:
            yield f"{keyword.arg}={ast.unparse(keyword.value)}"
        if keyword.arg in SECRETS and isinstance(keyword.value, ast.Constant) and keyword.value.value:
            yield f"{keyword.arg}, a secret in the source"
        if keyword.arg == "weights_only" and not (
            isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        ):
            yield f"weights_only={ast.unparse(keyword.value)}"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_nothing_runs_code_or_reads_pickles_from_models_and_data(path: Path) -> None:
    name = path.relative_to(REPOSITORY).as_posix()
    found = list(dangers(ast.parse(path.read_text(encoding="utf-8"))))
    assert [one for one in found if (name, one.partition(": ")[2].removesuffix("()")) not in ALLOWED] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_notebook_does_either(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            code = re.sub(r"(?m)^( *)[!%].*", r"\1pass", "".join(cell["source"]))
            assert list(dangers(ast.parse(code))) == []


def test_what_is_allowed_is_there() -> None:
    for (name, call), _ in ALLOWED.items():
        found = dangers(ast.parse((REPOSITORY / name).read_text(encoding="utf-8")))
        assert [one for one in found if one.endswith(f"{call}()")], name


def test_telemetry_is_off_before_a_library_is_imported() -> None:
    import os
    import subprocess
    import sys

    program = (
        "from tunesmith.line import quiet_libraries; quiet_libraries(); import huggingface_hub.constants as c; "
        "import os; assert c.HF_HUB_DISABLE_TELEMETRY and os.environ['DO_NOT_TRACK'] == '1'"
    )
    plain = {k: v for k, v in os.environ.items() if k not in {"HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"}}
    subprocess.run([sys.executable, "-c", program], env=plain, check=True)


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "exec(text)",
        "compile(text, name, 'exec')",
        "import pickle",
        "from pickle import loads",
        "import dill as d",
        "import yaml",
        "torch.load(path)",
        "torch.load(path, map_location='cpu')",
        "from torch import load",
        "read(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "os.system(command)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=wanted)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "importlib.import_module(config['module'])",
        "runpy.run_path(recipe.script)",
        "archive.extractall(target)",
        "YAML(typ='unsafe').load(text)",
        "jinja2.Environment().from_string(template)",
        "SFTConfig(push_to_hub=True)",
        "login(token='abc')",
    ],
)
def test_the_search_for_dangers_finds(line: str) -> None:
    assert len(list(dangers(ast.parse(line)))) == 1


def test_the_search_for_dangers_lets_harmless_lines_pass() -> None:
    harmless = "model.eval()\nsubprocess.run([a], shell=False)\nf(trust_remote_code=False)\nre.compile(text)\n"
    harmless += "jinja2.Environment(loader=ours)\nYAML(typ='safe')\nimportlib.import_module('json')\n"
    assert list(dangers(ast.parse(harmless + "reasons = {'trust_remote_code': 'no code from models runs'}"))) == []
