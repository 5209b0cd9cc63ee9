"""docs/performance.md, its pictures and the README's part of it, from the files in bench/results.

make bench-results      # on a machine that does nothing else
make performance
"""

import argparse
import json
import re
import statistics
from pathlib import Path

from fastopt.bench.cases import LARGE
from fastopt.bench.gates import read_gates
from fastopt.bench.outcome import mean_speedup, read_outcome
from fastopt.bench.peers import PEERS
from fastopt.bench.picture import save_picture

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
START, END = "<!-- figures: make performance -->", "<!-- end of figures -->"

INTRODUCTION = """# Performance

Made by `make performance` from the files in [bench/results](../bench/results): change nothing here by hand.

- All sides of a case are first shown to compute the same, state and averages included, as a judge in float64, which is
  held against formulas from the papers. Then they take turns in every round, in rotating order, on copies of the same
  parameters and gradients, each at the beginning of a cache line, and with as many threads. A figure is the median of
  the rounds' ratios.
- **The ceiling** is a plain loop over as many arrays as the step has to read and write, with one addition for each,
  started like a step; a pass over the gradients for their norm is a pass there too. Where all arrays fit into a cache
  it says what a launch costs, not what the memory does.
- **Peers** are used in the fastest way that they have: torch fused, foreach and in a loop; optax compiled by XLA, with
  donated buffers; Keras on torch; DeepSpeed's CPU kernels; NumPy in blocks that fit a cache (in newer runs
  Adam, AdamW and momentum only). A speed-up is a peer's time over fastopt's: below 1, the peer is faster.
- Threads wait as their libraries have them wait by default, unless `omp_wait_policy` below says otherwise.
"""


# -- parts of the page -------------------------------------------------------------------------------------------------


def table(header, rows):
    """In Markdown."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def cases_table(outcomes):
    """Every case with its peers; the fastest is bold."""
    peers = [name for name in PEERS if any(name in outcome.speedups for outcome in outcomes)]
    rows = []
    for outcome in outcomes:
        ratio = outcome.ceiling_fraction
        fraction = f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})" if ratio else "–"
        speedups = [_speedup(outcome, name) for name in peers]
        moved = outcome.bytes_per_parameter, f"{outcome.gb_per_s:.0f}"
        rows.append([f"`{outcome.case.id.replace('/cpu', '')}`", *moved, fraction, *speedups])
    return table(["case", "bytes per parameter", "GB/s", "of the ceiling (interval)", *peers], rows)


def _speedup(outcome, name):
    if name not in outcome.speedups:
        return "–"
    shown = f"{outcome.speedups[name].value:.3g}"
    return f"**{shown}**" if name == outcome.peer else shown


def machine(content):
    """Where and when."""
    facts = {"date": content["date"]} | content["surroundings"]
    versions = ", ".join(f"{name} {version}" for name, version in facts.pop("versions").items())
    rows = [(name.replace("_", " "), fact) for name, fact in facts.items()]
    return table(["", ""], [*rows, ("versions", versions), ("command", "`make bench-results`")])


def slower(outcomes):
    """Where a peer is faster, in a sentence or a list."""
    found = [outcome for outcome in outcomes if outcome.speedup is not None and outcome.speedup.value < 1]
    if not found:
        return "In no case of this run was a peer faster.\n"
    lines = []
    for outcome in found:
        ratio = outcome.speedup
        noise = ", within noise" if ratio.high >= 1 else ""
        lines.append(
            f"- `{outcome.case.id}`: {outcome.peer}, {ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f}){noise}"
        )
    return "\n".join(lines) + "\n"


def exceptions():
    """What the gates let pass, and why."""
    gates = read_gates(BENCH / "gates.toml", Path("none")).gates
    return "\n".join(
        f"- `{gate.cases}` against the {gate.against}, at least {gate.at_least:g}: {gate.cause}."
        for gate in gates
        if gate.cause
    )


def missing(outcomes):
    """Peers that took part in no case."""
    reasons = {}
    for outcome in outcomes:
        for name, reason in outcome.missing.items():
            reasons.setdefault(name, set()).add(reason)
    absent = [name for name in reasons if not any(name in outcome.speedups for outcome in outcomes)]
    return "".join(f"Without {name}: {'; '.join(sorted(reasons[name]))}.\n" for name in absent)


def scaling(found):
    """Three tables."""
    size = [(f"{row['elements']:,}", f"{row['cost']:.2f}", f"{row['ceiling_fraction']:.2f}") for row in found["size"]]
    tensors, groups = (
        [(f"{row[name]:,}", f"{row['cost']:.2f}") for row in found[name]] for name in ("tensors", "groups")
    )
    parts = [
        "One array, AdamW: cost per element, relative to the smallest; and the fraction of the ceiling.\n",
        table(["elements", "cost per element", "of the ceiling"], size),
        "Tensors of 64 elements, AdamW: cost per tensor, relative to that among the most.\n",
        table(["tensors", "cost per tensor"], tensors),
        "10,000 such tensors in groups with learning rates of their own: cost of a step, relative to one group.\n",
        table(["groups", "cost of a step"], groups),
    ]
    return "\n".join(parts)


def start(found):
    """One table."""
    names = {
        "import": "`import fastopt`, beyond numba",
        "first_step_warm": "building and first step of Adam, kernels in the cache",
        "first_step_cold": "the same, kernels to be compiled",
    }
    rows = [(text, f"{found[name]:.2f}") for name, text in names.items()]
    return table(["in a new process", "in times that `import numba` takes"], rows)


def keras(rows):
    """One table."""
    shown = []
    for row in rows:
        interval = "–".join(f"{end:.1f}" for end in row["interval"])
        shown.append((row["optimizer"], row["options"] or "–", row["model"], f"{row['speedup']:.1f}", interval))
    return table(["optimizer", "options", "variables", "speed-up over Keras's", "least–most"], shown)


def functions(found):
    """One table."""
    rows = [
        (f"`{name}`", *(f"{value:.2f} ({low:.2f}–{high:.2f})" for value, low, high in (ways["out="], ways["new"])))
        for name, ways in found.items()
    ]
    heading = "Of 4,096 rows of 1,000 float32; of losses value and gradient.\n\n"
    return heading + table(["against torch", "speed-up into memory that is reused", "into a new array"], rows)


def torch_steps(rows):
    """One table."""
    shown = []
    for row in rows:
        ways = [f"{ratio:.2f}" for ratio in row["speedups"]]
        shares = [
            f"{row['cold_shares'][name]:.2f}" if name in row["cold_shares"] else "–" for name in ("arrays", "flat")
        ]
        shown.append((f"`{row['case'].replace('/cpu', '')}`", row["peer"], *ways, *shares))
    heading = (
        "`fastopt.torch.AdamW` against the fastest of torch's; cold: 64 MB of other memory are read before each step. "
        "What the same arrays\ntake without torch, and as one flat buffer, as shares of the cold step.\n\n"
    )
    columns = ["case", "fastest of torch", "in turns", "step by step", "cold", "arrays", "flat buffer"]
    return heading + table(columns, shown)


SECTIONS = (
    ("scaling", "How it scales", scaling),
    ("start", "What a new process waits for", start),
    ("keras", "Inside Keras, torch backend", keras),
    ("torch", "fastopt.torch", torch_steps),
    ("functions", "Losses and activations", functions),
)


def gpu(files):
    """A table for each GPU run, or that there is none."""
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if not runs:
        return "No GPU figures yet: `make gpu`, on a machine that has one, makes them.\n"
    return "\n".join(gpu_run(run) for run in runs)


def gpu_run(run):
    """What one run found."""
    found = run["environment"]
    versions = ", ".join(
        f"{name} {found['versions'][name]}" for name in ("torch", "numba-cuda") if name in found["versions"]
    )
    rows = []
    for name, case in run["benchmark"]["cases"].items():
        if "sides" in case:
            fraction = case["fraction_of_copy"]
            ratios = [f"{side} {ratio['kernel']:.2f} / {ratio['wall']:.2f}" for side, ratio in case["ratios"].items()]
            rows.append((name, f"{fraction:.2f}", "; ".join(ratios) or "–"))
    heading = f"{found['gpu']['name']}, {run['date']}, {versions}; `make gpu`.\n\n"
    return heading + table(["case", "of a copy's bandwidth", "speed-up over torch, kernel / wall time"], rows)


# -- files -------------------------------------------------------------------------------------------------------------


def cpu_page(content, docs):
    """All that a CPU run gives; draws the pictures."""
    outcomes = [read_outcome(case) for case in content["cases"]]
    large = [outcome for outcome in outcomes if outcome.case.model == LARGE]
    others = [outcome for outcome in outcomes if outcome.case.model != LARGE]
    pictures = docs / "performance"
    pictures.mkdir(parents=True, exist_ok=True)
    where = content["surroundings"]
    title = f"{where['threads']} threads of {where['processor']}"
    save_picture(large, pictures / "large.png", f"32 million elements, float32, {title}")
    save_picture(others, pictures / "others.png", f"other sizes, models and stacks, {title}")
    parts = [
        "## The machine\n", machine(content),
        "## Elementwise rules, 32 million elements\n", "![fractions and speed-ups](performance/large.png)\n",
        cases_table(large),
        "## Other sizes, models, stacks of options\n", "![fractions and speed-ups](performance/others.png)\n",
        "`clip`: by the global norm; `clip-ema`: and a moving average of the parameters; `all`: and unscaled "
        "gradients, which are zeroed at last. `465-groups`: learning rate and decay of its own for each array.\n",
        cases_table(others),
        f"Geometric mean of the speed-ups over the fastest peer of each case: **{mean_speedup(outcomes):.2f}**.\n",
        missing(outcomes),
        "## Where a peer is faster\n", slower(outcomes),
        "What the gates let pass:\n", exceptions() + "\n",
    ]  # fmt: skip
    for name, heading, render in SECTIONS:
        if name in content:
            parts += [f"## {heading}\n", render(content[name])]
    return parts, outcomes


def readme_part(outcomes, content):
    """Picture and a few lines for the README."""
    where = content["surroundings"]
    rows = [
        (f"`{outcome.case.id.replace('/cpu', '')}`", outcome.peer, f"{outcome.speedup.value:.2g}")
        for outcome in outcomes
        if outcome.case.recipe == "adamw" and outcome.case.dtype == "float32" and outcome.speedup is not None
    ]
    picture = "![fraction of the ceiling, and speed-up over each peer](docs/performance/large.png)\n"
    caption = f"{where['threads']} threads of {where['processor']}, {content['date']}.\n"
    sentences = "\n".join(filter(None, (large_fractions(outcomes), low_fractions(outcomes)))) + "\n"
    return "\n".join([picture, caption, sentences, table(["AdamW", "fastest peer", "speed-up over it"], rows)])


def large_fractions(outcomes):
    """What the picture's left half shows, in a sentence."""
    found = [each.ceiling_fraction.value for each in outcomes if each.case.model == LARGE and each.ceiling_fraction]
    if not found:
        return ""
    return (
        f"Elementwise rules on 32 million elements ran at {min(found):.2f} to {max(found):.2f} of the ceiling, a plain "
        f"in-place loop over as many\narrays in the same run; {statistics.median(found):.2f} in the median."
    )


def low_fractions(outcomes):
    """How far `Adafactor` stays below."""
    found = [each for each in outcomes if each.case.recipe == "adafactor" and each.ceiling_fraction]
    shown = " and ".join(f"{each.ceiling_fraction.value:.2f} (`{each.case.model}`)" for each in found)
    return (
        f"`Adafactor`, in three launches with sums over rows and columns, reached {shown} of its own." if found else ""
    )


def write_readme(path, part):
    """Replace what stands between the marks."""
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    path.write_text(pattern.sub(lambda _: f"{START}\n{part}\n{END}", text), encoding="utf-8")


def write(results, docs, readme):
    """Everything, from what is in the folder of results."""
    parts = [INTRODUCTION]
    cpu = results / "cpu.json"
    if cpu.exists():
        content = json.loads(cpu.read_text(encoding="utf-8"))
        page, outcomes = cpu_page(content, docs)
        parts += page
        write_readme(readme, readme_part(outcomes, content))
    else:
        parts.append("No CPU figures yet: `make bench-results` makes them.\n")
    parts += ["## On a GPU\n", gpu(sorted(results.glob("gpu-*.json")))]
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "performance.md").write_text("\n".join(part for part in parts if part), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=BENCH / "results", help="folder to read")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder to write")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="file to change")
    arguments = parser.parse_args()
    write(arguments.results, arguments.docs, arguments.readme)


if __name__ == "__main__":
    main()
