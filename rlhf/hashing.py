"""Fingerprints: what a file, a folder, a config, a tokenizer or a set of weights is, as a sha256 in hex."""

import hashlib
import json
from pathlib import Path
from typing import Any

from rlhf.errors import ArtifactError
from rlhf.files import plain, read_json, read_text

# State of the last call, not of the tokenizer: save_pretrained writes whatever the last batch was padded and cut to.
CALL_STATE = ("truncation", "padding")
SLOW_TOKENIZER_FILES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "added_tokens.json")


def short(digest: str | None) -> str:
    """A digest as messages and tables show it."""
    return digest[:12] if digest else "none"


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def as_share(digest: str) -> float:
    """A digest as a number in [0, 1) that looks random: the same text, the same place."""
    return int(digest[:13], 16) / 16**13  # 52 bits: exact in a float


def file_sha256(path: str | Path) -> str:
    """Digest of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_fingerprint(model_dir: str | Path) -> str:
    """Digest of the names and bytes of a folder's safetensors files."""
    weights = sorted(Path(model_dir).glob("*.safetensors"))
    if not weights:
        raise ArtifactError(f"{model_dir}: no *.safetensors file; convert the weights to safetensors")
    return json_sha256([[path.name, file_sha256(path)] for path in weights])


def json_sha256(value: Any) -> str:
    """Digest of a value's canonical JSON: the order of keys does not matter, the order of a list does."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text_sha256(text)


def flat(values: dict, prefix: str = "") -> dict[str, Any]:
    """Nested config values under dotted keys, e.g. {"sft": {"seed": 1}} -> {"sft.seed": 1}. Lists stay whole."""
    result = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        result.update(flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": plain(value)})
    return result


def config_sha256(values: dict) -> str:
    """Digest of config values, nested or under dotted keys."""
    return json_sha256(flat(values))


def tokenizer_sha256(model_dir: str | Path) -> str:
    """Digest of what turns text into ids: the tokenizer's files and its end and padding tokens."""
    model_dir = Path(model_dir)
    if (model_dir / "tokenizer.json").exists():
        values = read_json(model_dir / "tokenizer.json")
        body = {key: value for key, value in values.items() if key not in CALL_STATE}
    else:
        body = {name: file_sha256(model_dir / name) for name in SLOW_TOKENIZER_FILES if (model_dir / name).exists()}
    if not body:
        raise ArtifactError(f"{model_dir}: no tokenizer (tokenizer.json); save the tokenizer beside the model")
    config = _tokenizer_config(model_dir)
    return json_sha256({"tokenizer": body, **{key: _content(config.get(key)) for key in ("eos_token", "pad_token")}})


def chat_template_sha256(model_dir: str | Path) -> str | None:
    """Digest of the chat template, from its own file or from tokenizer_config.json; None where there is none."""
    file = Path(model_dir) / "chat_template.jinja"
    template = read_text(file) if file.exists() else _tokenizer_config(Path(model_dir)).get("chat_template")
    if template is None or isinstance(template, str):
        return text_sha256(template) if template else None
    return json_sha256(template)  # several named templates


def _tokenizer_config(model_dir: Path) -> dict:
    path = model_dir / "tokenizer_config.json"
    return read_json(path) if path.exists() else {}


def _content(token: Any) -> Any:
    """A special token's text, whether saved as text or as an AddedToken."""
    return token.get("content") if isinstance(token, dict) else token
