#!/usr/bin/env python3
"""Puts the measured tables into the READMEs: every `<!-- NAME.csv -->` ... `<!-- end -->` section is
replaced by a table of the file NAME.csv beside this script; linears-*, attention-*, tune-*, first-token-*, decode-* and quality-* have a form each, matrices-*
is the single matrices of the linears-* file, cost-* the same decode-* file in dollars, and curve-* the curve of the quality-* file. Run it from anywhere after a measurement:
    make_tables.py [--price=DOLLARS_PER_GPU_HOUR]"""

import argparse
import csv
import math
import pathlib
import re

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
READMES = [ROOT / "kernels" / "cuda" / "README.md", ROOT / "runtime" / "cuda" / "README.md", ROOT / "tests" / "bench" / "README.md"]
PEERS = HERE / "decode-peers-h200.csv"  # other programs on the same GPU: shape,program,batch,tokens_per_s


def rows_of(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def linears_table(path):
    rows = [r for r in rows_of(path) if "/" not in r["shape"]]
    variants = list(dict.fromkeys(r["variant"] for r in rows))
    cells = {(r["m"], r["variant"]): r for r in rows}
    first = rows[0]
    lines = [f"{first['gpu']}, {first['date']}, commit {first['commit']}, {first['shape']}: ms for all layers (times cuBLAS fp16; % of bandwidth)",
             "", "| m | " + " | ".join(variants) + " |", "|---" * (len(variants) + 1) + "|"]
    for m in dict.fromkeys(r["m"] for r in rows):
        line = [m]
        for variant in variants:
            r = cells.get((m, variant))
            line.append("-" if r is None else
                        f"{float(r['ms_all_layers']):.2f} ({float(r['x_cublas_fp16']):.2f}x; {float(r['pct_bandwidth']):.0f} %)")
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def matrices_table(path):
    """Each matrix alone, as `fewbit-bench linears --layers --csv` prints them (shape MODEL/MATRIX)."""
    rows = [r for r in rows_of(path) if "/" in r["shape"]]
    variants = [v for v in dict.fromkeys(r["variant"] for r in rows) if v != "default+staging"]
    times = {(r["m"], r["shape"], r["variant"]): r for r in rows}
    first = rows[0]
    lines = [f"{first['gpu']}, {first['date']}, commit {first['commit']}: ms for all layers (times cuBLAS fp16)", "",
             "| m | matrix | " + " | ".join(variants) + " |", "|---" * (len(variants) + 2) + "|"]
    gains = {}  # of two variants: (how much faster, m, matrix)
    for m, shape in dict.fromkeys((r["m"], r["shape"]) for r in rows):
        matrix = shape.split("/")[1]
        of = {v: times[m, shape, v] for v in variants if (m, shape, v) in times}
        lines.append(f"| {m} | {matrix} | " + " | ".join(
            f"{float(of[v]['ms_all_layers']):.3f} ({float(of[v]['x_cublas_fp16']):.2f}x)" if v in of else "-" for v in variants) + " |")
        if "synchronous" in of:
            for v in ("asynchronous", "default"):
                gain = float(of["synchronous"]["ms_all_layers"]) / float(of[v]["ms_all_layers"])
                gains[v] = max(gains.get(v, (0, "", "")), (gain, m, matrix))
    if gains:
        lines += ["", "Over synchronous: " + ", ".join(f"{v} up to {g:.2f}x ({matrix}, m = {m})" for v, (g, m, matrix) in gains.items()) + "."]
    return "\n".join(lines)


def decode_table(path):
    rows = rows_of(path)
    batches = sorted({int(r["batch"]) for r in rows} - {0})
    peers = [r for r in rows_of(PEERS) if r["shape"] in {r["shape"] for r in rows}]
    first = rows[0]
    others = [c for c in dict.fromkeys(r["commit"] for r in rows) if c != first["commit"]]
    marks = {c: "*" * (i + 1) for i, c in enumerate(others)}  # numbers of other commits than the first row's
    notes = "".join(f"; {mark}: commit {c}" for c, mark in marks.items())
    lines = [f"{first['gpu']}, {first['date']}, commit {first['commit']}{notes}: tokens per second through the engine (GPU busy), context {first['context']}", "",
             "| | " + " | ".join(f"batch {b}" for b in batches) + " | prefill |", "|---" * (len(batches) + 2) + "|"]
    for shape, kv in dict.fromkeys((r["shape"], r["kv"]) for r in rows):
        of = {int(r["batch"]): r for r in rows if (r["shape"], r["kv"]) == (shape, kv)}
        cells = [f"{float(of[b]['tokens_per_s']):,.0f}{marks.get(of[b]['commit'], '')} ({float(of[b]['gpu_busy_pct']):.0f} %)" if b in of else "-" for b in batches + [0]]
        lines.append(f"| {shape}, {kv} KV | " + " | ".join(cells) + " |")
    for shape, program in dict.fromkeys((r["shape"], r["program"]) for r in peers):
        of = {int(r["batch"]): float(r["tokens_per_s"]) for r in peers if (r["shape"], r["program"]) == (shape, program)}
        lines.append(f"| {shape}: {program} | " + " | ".join(f"{of[b]:,.0f}" if b in of else "-" for b in batches + [0]) + " |")
    return "\n".join(lines)


def first_token_table(path):
    rows = rows_of(path)
    prompts = sorted({int(r["prompt"]) for r in rows})
    first = rows[0]
    lines = [f"{first['gpu']}, {first['date']}, commit {first['commit']}: ms to the first token of one request alone, by tokens of its prompt", "",
             "| | " + " | ".join(f"{p}" for p in prompts) + " |", "|---" * (len(prompts) + 1) + "|"]
    for shape, kv in dict.fromkeys((r["shape"], r["kv"]) for r in rows):
        of = {int(r["prompt"]): float(r["first_token_ms"]) for r in rows if (r["shape"], r["kv"]) == (shape, kv)}
        lines.append(f"| {shape}, {kv} KV | " + " | ".join(f"{of[p]:.1f}" if p in of else "-" for p in prompts) + " |")
    return "\n".join(lines)


def cost_table(path, price):
    """Dollars per million output tokens of a GPU that decodes all the time."""
    rows = [r for r in rows_of(path) if r["batch"] != "0"]
    batches = sorted({int(r["batch"]) for r in rows})
    lines = [f"dollars per million output tokens at {price:.2f} dollars per GPU hour", "",
             "| | " + " | ".join(f"batch {b}" for b in batches) + " |", "|---" * (len(batches) + 1) + "|"]
    rates = {}
    for r in rows:
        rates.setdefault(f"{r['shape']}, fewbit, {r['kv']} KV", {})[int(r["batch"])] = float(r["tokens_per_s"])
    for r in rows_of(PEERS):
        if r["shape"] in {x["shape"] for x in rows}:
            rates.setdefault(f"{r['shape']}, {r['program']}", {})[int(r["batch"])] = float(r["tokens_per_s"])
    for name, of in rates.items():
        lines.append(f"| {name} | " + " | ".join(f"{price / 3600 / of[b] * 1e6:.2f}" if b in of else "-" for b in batches) + " |")
    for peer in (name for name in rates if "FP16" in name):
        for name in (name for name in rates if name.startswith(peer.split(",")[0] + ", fewbit")):
            ratios = [f"{rates[name][b] / rates[peer][b]:.1f}x" if b in rates[name] and b in rates[peer] else "-" for b in batches]
            lines.append(f"| {name}: less than {peer.split(', ', 1)[1]} by | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def attention_table(path):
    """Decoding by batch and context, then prefill, one column per cache type."""
    rows = rows_of(path)
    kinds = list(dict.fromkeys(r["kv"] for r in rows))
    cells = {(int(r["query"]), int(r["batch"]), int(r["context"]), r["kv"]): r for r in rows}
    first = rows[0]
    lines = [f"{first['gpu']}, {first['date']}, commit {first['commit']}, {first['shape']}: us per layer (GB/s of keys and values; % of bandwidth)", "",
             "| batch, context | " + " | ".join(f"{k} KV" for k in kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for query, batch, context in dict.fromkeys(key[:3] for key in sorted(cells, key=lambda key: (key[0] > 1, key))):
        line = [f"{batch}, {context}" if query == 1 else f"prefill of {query}"]
        for kind in kinds:
            r = cells.get((query, batch, context, kind))
            if r is None:
                line.append("-")
            elif query == 1:
                line.append(f"{float(r['us_per_layer']):.1f} ({float(r['gb_per_s']):,.0f}; {float(r['pct_bandwidth']):.0f} %)")
            else:
                line.append(f"{float(r['us_per_layer']):.0f} ({float(r['tflop_per_s']):.0f} TFLOP/s)")
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def tune_table(path):
    """Steps of tuning by how the factors of large products are rounded."""
    rows = rows_of(path)
    first = rows[0]
    lines = [f"{first['gpu']}, {first['date']}, {first['shape']}", "",
             "| layers | factors | layers on the device | windows x tokens | ms per step | tokens per second | 800 steps, minutes | peak GiB | commit |", "|---" * 9 + "|"]
    for r in rows:
        ms = float(r["ms_per_step"])
        lines.append(f"| {r['layers']} | {r['factors']} | {'all' if r['memory'] == 'all' else 'one (`--low_memory`)'} | {r['windows']} x {r['context']} | {ms:,.0f} | {float(r['tokens_per_s']):,.0f} | {800 * ms / 60000:.1f} | {float(r['peak_gib']):.1f} | {r['commit']} |")
    return "\n".join(lines)


def quality_rows(path):
    """One record per row: bits, CPU seconds and so on, and for each text its perplexity and the ratio to the original's on the same
    windows, with a mark if these are not as many as of other rows."""
    original, most, records = {}, {}, {}
    for r in rows_of(path):
        most[r["text"]] = max(most.get(r["text"], 0), int(r["windows"]))
        if r["section"] == "original":
            original[r["text"], r["windows"]] = float(r["perplexity"])
    for r in rows_of(path):
        if r["section"] == "original":
            continue
        record = records.setdefault((r["section"], r["row"]), dict(r, bits=float(r["bits"]), texts={}))
        perplexity = float(r["perplexity"])
        mark = " &dagger;" if int(r["windows"]) < most[r["text"]] else ""
        record["texts"][r["text"]] = (perplexity, perplexity / original[r["text"], r["windows"]], mark)
    return list(records.values())


def is_default(record):
    return record["section"] == "curve" and record["row"].startswith("default at") or (record["section"], record["row"]) == ("default", "default")


def curve_of(records, text):
    """(bits, ratio) of the default by rising bits."""
    return sorted((r["bits"], r["texts"][text][1]) for r in records if is_default(r))


def on_curve(curve, bits):
    """The default's ratio at `bits`, between two measured points by the logarithm; empty outside of them."""
    for (b0, r0), (b1, r1) in zip(curve, curve[1:]):
        if b0 <= bits <= b1:
            return f"{math.exp(math.log(r0) + (math.log(r1) - math.log(r0)) * (bits - b0) / (b1 - b0)):.3f}"
    return ""


def calibration_of(record):
    probes = f" + {record['probe_windows']}" if record["probe_windows"] and "--bits=" in record["arguments"] else ""
    return record["calibration_windows"] + probes


def quality_table(path):
    records = quality_rows(path)
    texts = list(dict.fromkeys(t for r in records for t in r["texts"]))
    curve = curve_of(records, texts[0])
    lines = ["| | bits | windows | " + " | ".join(f"{t}, ratio" for t in texts) + " | the default at these bits | KL | top-1 | CPU s | MiB |",
             "|---" * (len(texts) + 8) + "|"]
    for r in records:
        if r["section"] == "curve":
            continue
        cells = [f"{r['section']}: {r['row']}", f"{r['bits']:.3f}" + ("" if r["bits_from"] == "bytes" else " *"), calibration_of(r)]
        for t in texts:
            cells.append("{:.2f}, {:.3f}{}".format(*r["texts"][t]) if t in r["texts"] else "")
        cells += [on_curve(curve, r["bits"]), f"{float(r['kl']):.3f}" if r["kl"] else "",
                  f"{100 * float(r['top1']):.1f} %" if r["top1"] else "", f"{float(r['cpu_seconds']):.0f}" if r["cpu_seconds"] else "", r["peak_mib"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curve_table(path):
    records = quality_rows(path)
    texts = list(dict.fromkeys(t for r in records for t in r["texts"]))
    curve = curve_of(records, texts[0])
    lines = ["| bits | | windows | " + " | ".join(f"{t}, ratio" for t in texts) + " | KL | the default at these bits |", "|---" * (len(texts) + 5) + "|"]
    for r in sorted((r for r in records if r["section"] == "curve" or is_default(r)), key=lambda r: r["bits"]):
        cells = [f"{r['bits']:.3f}" + ("" if r["bits_from"] == "bytes" else " *"), "default" if is_default(r) else r["row"], calibration_of(r)]
        cells += ["{1:.3f}{2}".format(*r["texts"][t]) if t in r["texts"] else "" for t in texts]
        cells += [f"{float(r['kl']):.3f}" if r["kl"] else "", "" if is_default(r) else on_curve(curve, r["bits"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(name, price):
    if name.startswith("quality-"):
        return quality_table(HERE / name)
    if name.startswith("curve-"):
        return curve_table(HERE / name.replace("curve-", "quality-", 1))
    if name.startswith("tune-"):
        return tune_table(HERE / name)
    if name.startswith("attention-"):
        return attention_table(HERE / name)
    if name.startswith("first-token-"):
        return first_token_table(HERE / name)
    if name.startswith("linears-"):
        return linears_table(HERE / name)
    if name.startswith("matrices-"):
        return matrices_table(HERE / name.replace("matrices-", "linears-", 1))
    if name.startswith("cost-"):
        return cost_table(HERE / name.replace("cost-", "decode-", 1), price)
    return decode_table(HERE / name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--price", type=float, default=3.00, help="dollars per GPU hour")
    price = parser.parse_args().price
    for readme in READMES:
        text = readme.read_text()
        for name in re.findall(r"<!-- (\S+\.csv) -->", text):
            section = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- end -->", re.S)
            filled = f"<!-- {name} -->\n{table(name, price)}\n<!-- end -->"
            text = section.sub(lambda _: filled, text, count=1)
        readme.write_text(text)


if __name__ == "__main__":
    main()
