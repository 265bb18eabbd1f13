"""Records like those of the benchmarks, with made-up figures."""

from typing import Any

MACHINE = {
    "cpu": "Test CPU",
    "cores": 2,
    "threads": 2,
    "isa": "AVX2",
    "load_before": 0.0,
    "python": "3.11.0",
    "torch": "2.13.0",
    "wavalign_fast": "0.1.0",
    "commit": "abc1234",
    "date": "2026-01-01",
}


def side(
    label: str, wall: float, ours_wall: float, *, ours: bool = False, extra: int = 10 * 2**20,
    errors: dict[str, float] | None = None, spread: float = 0.01,
) -> dict[str, Any]:  # fmt: skip
    return {
        "label": label,
        "version": "1.2",
        "runs": f"the path of {label}",
        "ours": ours,
        "outcome": "right",
        "errors": {"logp": 1e-6, "grad_weight": 1e-3} if errors is None else errors,
        "rounds": 5,
        "wall_s": wall,
        "wall_quartiles_s": [wall * (1 - spread), wall * (1 + spread)],
        "cpu_s": 2 * wall,
        "cpu_quartiles_s": [2 * wall, 2 * wall],
        "wall_ratio_to": {"three_gemms": wall / 0.5}
        | ({} if ours else {"ours-cpu": wall / ours_wall}),
        "extra_bytes_beyond_gradients": extra,
    }


def bound(ours_wall: float) -> dict[str, Any]:
    return {
        "label": "three products alone",
        "bound": True,
        "outcome": "right",
        "wall_s": 0.5,
        "wall_quartiles_s": [0.5, 0.5],
        "cpu_s": 1.0,
        "cpu_quartiles_s": [1.0, 1.0],
        "wall_ratio_to": {"ours-cpu": 0.5 / ours_wall},
        "extra_bytes_beyond_gradients": 2**20,
    }


def case(
    rivals: dict[str, float], *, ours: float = 1.0, dtype: str = "bf16", name: str = "kernel",
    operation: str = "logp", **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Ours at ``ours`` seconds and each rival at its own."""
    sides = {"ours-cpu": side("wavalign_fast", ours, ours, ours=True)}
    sides |= {key: side(f"Rival {key}", wall, ours, **options) for key, wall in rivals.items()}
    return {
        "shape": {
            "name": name, "title": "A head", "source": "nobody's <head>", "hidden": 512,
            "vocab": 32768, "speech": [3, 4], "boundary": [], "rows": 1024, "live": 1024,
        },
        "operation": operation,
        "dtype": dtype,
        "device": "cpu",
        "machine": MACHINE,
        "tolerance": {"value": 1e-4, "gradient": 1e-2},
        "rates": {"flops": 10**11, "gemm_flops_per_s": 2e11, "copy_bytes_per_s": 2e10},
        "sides": sides | {"three_gemms": bound(ours)},
    }  # fmt: skip


def skipping() -> dict[str, Any]:
    """Ours alone, on rows with a known distribution."""
    return case({}, ours=2.0) | {
        "distribution": "made up for a test",
        "off_modality_mass": {"median": 2e-8, "max": 5e-3},
    }


def growth() -> dict[str, Any]:
    cases = []
    for axis in ("rows", "vocab", "hidden"):
        for value in (256, 512, 1024):
            point = case({"torch": 2.0 * value}, ours=float(value), name=f"{axis}-{value}")
            point["shape"] |= {"axis": axis, axis: value}
            cases.append(point)
    slopes = {"time": 1.0, "extra_memory": 0.0}
    return {
        "benchmark": "growth",
        "format": 2,
        "cases": cases,
        "slopes": {axis: {"ours-cpu": slopes} for axis in ("rows", "vocab", "hidden")},
    }


def adversarial() -> dict[str, Any]:
    def outcome(status: str, detail: str = "") -> dict[str, str]:
        return {"status": status, "detail": detail}

    return {
        "machine": MACHINE,
        "providers": {
            "ours-cpu": {"label": "wavalign_fast", "version": "0.1.0"},
            "torch": {"label": "PyTorch", "version": "2.13.0"},
        },
        "cases": [
            {
                "name": "banned",
                "title": "Half of the ids are banned",
                "items": [11],
                "source": "somewhere#1",
                "outcomes": {"ours-cpu": outcome("pass"), "torch": outcome("fail", "NaN in <dX>")},
            },
            {
                "name": "range",
                "title": "An id beyond the vocabulary",
                "items": [],
                "source": "found here",
                "outcomes": {"ours-cpu": outcome("pass"), "torch": outcome("unsupported")},
            },
            {
                "name": "huge",
                "title": "More than 2^31 logits",
                "items": [4],
                "source": "elsewhere#2",
                "outcomes": {"ours-cpu": outcome("pass"), "torch": outcome("crash", "exit -9")},
            },
        ],
        "not_applicable": [{"item": 10, "title": "Sharded", "reason": "wants two devices"}],
    }


def spoken_sums() -> dict[str, Any]:
    """Two arms over two seeds."""

    def figures(**means: float) -> dict[str, Any]:
        return {name: {"mean": mean, "std": 0.01} for name, mean in means.items()}

    means = {"speech_matches_text": 0.9, "speech_says_sum": 0.3, "speech_ce": 0.05}
    means |= {"text_ce": 0.13, "ended": 1.0, "items": 400.0}
    seconds = {"seconds": {"values": [10.0, 20.0]}}
    return {
        "recipe": "spoken-sums",
        "machine": MACHINE,
        "seeds": [0, 1],
        "jobs": 2,
        "base": figures(text_accuracy=0.352, text_accuracy_greedy=0.815, **means),
        "arms": {
            "wavalign": figures(text_accuracy=0.595, text_accuracy_greedy=0.835, **means) | seconds,
            "sft-gold": figures(text_accuracy=0.612, text_accuracy_greedy=0.857, **means) | seconds,
        },
    }


def demo() -> dict[str, Any]:
    """The cost of the first command of README."""
    return {
        "machine": MACHINE,
        "times": {
            "install": {"wall_s": 400.0, "cpu_s": 300.0},
            "demo": {"wall_s": 500.0, "cpu_s": 660.0},
        },
        "download_bytes": 410e6,
        "disk_bytes": 1.52e9,
    }


def grpo() -> dict[str, Any]:
    """A step of GRPO of one size, by TRL and by us."""

    def side(label: str, cpu: float, *, ours: bool) -> dict[str, Any]:
        return {
            "label": label,
            "ours": ours,
            "cpu_s": cpu,
            "cpu_s_over_ours": {"median": cpu / 2, "range": [cpu / 2 - 0.1, cpu / 2 + 0.1]},
            "phases_cpu_s": {"rollout": cpu / 2, "forward_backward": cpu / 2},
            "peak_MiB": 100.0,
            "gradient_error": 0.0 if ours else 2e-7,
        }

    return {
        "benchmark": "grpo",
        "sizes": {
            "tiny": {
                "size": {
                    "title": "a <tiny> model",
                    "prompts": 2,
                    "group": 3,
                    "length": 5,
                    "steps": 2,
                },
                "machine": MACHINE | {"load": 1.5},
                "versions": {"trl": "1.16.0", "transformers": "5.24.0"},
                "rounds": 3,
                "equal_groups": 0.25,
                "sides": {"trl": side("TRL", 3.0, ours=False), "ours": side("us", 2.0, ours=True)},
            }
        },
    }


def records() -> dict[str, Any]:
    """A record of each benchmark."""
    return {
        "linear_logprob": {
            "benchmark": "linear_logprob",
            "format": 2,
            "cases": [
                case({"torch": 2.0, "trl": 3.0}),
                case({"torch": 0.5}, dtype="fp32"),
                case({"torch": 4.0}, name="other"),
            ],
        },
        "hybrid_loss": {
            "benchmark": "hybrid_loss",
            "format": 2,
            "cases": [case({"released": 5.0}, operation="hybrid step")],
        },
        "dpo": None,
        "skip": {"benchmark": "skip", "format": 2, "cases": [skipping()]},
        "growth": growth(),
        "adversarial": adversarial(),
        "spoken_sums": spoken_sums(),
        "demo": demo(),
        "grpo": grpo(),
    }
