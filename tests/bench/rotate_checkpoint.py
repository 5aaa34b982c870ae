#!/usr/bin/python3
"""Rotates a Llama-shaped checkpoint so that it computes the same with flatter weights: a random orthogonal matrix on the residual
stream and one per head between v and o, both folded into the weights (as QuaRot, arXiv 2404.00456, and SpinQuant, arXiv 2405.16406,
do offline). A Hadamard matrix with random signs where the size is a power of two, else a random orthogonal one. The norms' weights
are folded into what follows them, the head is untied, tensors are written as float32. For tests/bench/quality.

    rotate_checkpoint.py MODEL OUT [SEED]"""

import json
import pathlib
import shutil
import sys

import numpy as np

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def read_shard(path):
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
        data = f.read()
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        yield name, values.astype(np.float64).reshape(entry["shape"])


def write(path, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, values in tensors.items():
        size = 4 * values.size
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            f.write(values.astype(np.float32).tobytes())


def orthogonal(n, random):
    if n & (n - 1) == 0:
        h = np.ones((1, 1))
        while len(h) < n:
            h = np.block([[h, h], [h, -h]])
        return h * random.choice([-1.0, 1.0], n)[:, None] / np.sqrt(n)
    q, r = np.linalg.qr(random.standard_normal((n, n)))
    return q * np.sign(np.diag(r))


def per_head(matrix, q, inputs):
    """Each head's block of rows (inputs: of columns) of `matrix` turned by q."""
    d = len(q)
    if inputs:
        return (matrix.reshape(len(matrix), -1, d) @ q).reshape(matrix.shape)
    return (q.T @ matrix.reshape(-1, d, matrix.shape[1])).reshape(matrix.shape)


def rotate(tensors, config, random):
    stream = orthogonal(config["hidden_size"], random)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    embedding = tensors["model.embed_tokens.weight"]
    head = tensors.get("lm_head.weight", embedding)
    tensors["lm_head.weight"] = head * tensors["model.norm.weight"] @ stream
    tensors["model.norm.weight"] = np.ones_like(tensors["model.norm.weight"])
    tensors["model.embed_tokens.weight"] = embedding @ stream
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        for norm, names in (("input_layernorm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
                            ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"])):
            gain = tensors[f"{p}{norm}.weight"]
            for name in names:
                tensors[f"{p}{name}.weight"] = tensors[f"{p}{name}.weight"] * gain @ stream
            tensors[f"{p}{norm}.weight"] = np.ones_like(gain)
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"{p}{name}.weight"] = stream.T @ tensors[f"{p}{name}.weight"]
        q = orthogonal(head_dim, random)
        tensors[f"{p}self_attn.v_proj.weight"] = per_head(tensors[f"{p}self_attn.v_proj.weight"], q, False)
        tensors[f"{p}self_attn.o_proj.weight"] = per_head(tensors[f"{p}self_attn.o_proj.weight"], q, True)
        bias = f"{p}self_attn.v_proj.bias"
        if bias in tensors:
            tensors[bias] = per_head(tensors[bias][:, None], q, False)[:, 0]


def main():
    model, out = map(pathlib.Path, sys.argv[1:3])
    config = json.loads((model / "config.json").read_text())
    tensors = {}
    for shard in sorted(model.glob("*.safetensors")):
        tensors.update(read_shard(shard))
    rotate(tensors, config, np.random.default_rng(int(sys.argv[3]) if len(sys.argv) > 3 else 0))
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial / "model.safetensors", tensors)
    config |= {"tie_word_embeddings": False, "torch_dtype": "float32"}
    (partial / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        if (model / name).exists():
            shutil.copy(model / name, partial / name)
    partial.rename(out)


if __name__ == "__main__":
    main()
