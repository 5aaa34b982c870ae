#!/usr/bin/env python3
"""Puts the measured tables into the READMEs: every `<!-- NAME.csv -->` ... `<!-- end -->` section is
replaced by a table of the file NAME.csv beside this script. Run it from anywhere after a measurement."""

import csv
import pathlib
import re

HERE = pathlib.Path(__file__).resolve().parent
READMES = [HERE.parents[2] / "kernels" / "cuda" / "README.md"]


def linears_table(path):
    with open(path, newline="") as f:
        rows = list(csv.DictReader(f))
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


def main():
    for readme in READMES:
        text = readme.read_text()
        for name in re.findall(r"<!-- (\S+\.csv) -->", text):
            section = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- end -->", re.S)
            table = f"<!-- {name} -->\n{linears_table(HERE / name)}\n<!-- end -->"
            text = section.sub(lambda _: table, text, count=1)
        readme.write_text(text)


if __name__ == "__main__":
    main()
