"""Tables, page and README agree with the records, and stay whole where one is missing."""

import re
import sys
from html.parser import HTMLParser

import pytest

from benchmarks.report import __main__ as report
from benchmarks.report import plots, readme
from benchmarks.report.adversarial import adversarial_section, failures
from benchmarks.report.notes import SMALL, UNKNOWN, WHY, why
from benchmarks.report.page import render
from benchmarks.report.provenance import uncommitted_note, where_measured
from benchmarks.report.recipe import recipe_markdown
from benchmarks.report.rows import METRICS, places, rows_of, standings
from benchmarks.report.tables import (
    case_verdicts,
    html_table,
    machine_line,
    markdown_table,
    mebibytes,
    seconds,
    text_table,
)
from tests.benchmarks.synthetic import MACHINE, adversarial, case, growth, records, spoken_sums

NOTHING = dict.fromkeys(report.NAMES)
VOID = {"meta", "img", "source", "br"}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes most of a page's time, and the plots have their own tests."""
    monkeypatch.setattr("benchmarks.report.page.data_uri", lambda draw, theme: "data:image/png,")


class Balanced(HTMLParser):
    """Collects the text; fails where a closed element is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def page_text(found) -> str:
    parser = Balanced()
    parser.feed(render(found))
    parser.close()
    assert parser.open == []
    return parser.text


def verdict(rivals, **options) -> dict[str, str]:
    return dict(text.split(": ", 1) for text in case_verdicts(case(rivals, **options)))


def test_who_is_first_is_read_from_the_figures():
    assert verdict({"torch": 2.0, "trl": 3.0})["time"] == "first, 2.00× ahead of Rival torch"
    assert verdict({"torch": 2.0, "trl": 0.8})["time"] == "behind Rival trl, 1.25×"
    assert verdict({"torch": 1.005})["time"] == "level with Rival torch"
    assert verdict({"torch": 0.995})["time"] == "level with Rival torch"


def test_memory_and_error_have_their_own_margins():
    found = verdict({"torch": 2.0}, extra=5 * 2**20, errors={"logp": 1e-2, "grad_weight": 1e-3})
    assert found["extra memory"] == "behind Rival torch, 2.00×"
    assert found["error"] == "first, 10000× ahead of Rival torch"
    found = verdict({"torch": 2.0}, extra=int(9.8 * 2**20), errors={"logp": 6e-7})
    assert found["extra memory"] == found["error"] == "level with Rival torch"


def test_ours_with_no_extra_memory_at_all_is_first():
    one = case({"torch": 2.0})
    one["sides"]["ours-cpu"]["extra_bytes_beyond_gradients"] = 0
    assert "extra memory: first, by any factor ahead of Rival torch" in case_verdicts(one)


def test_neither_the_bound_nor_a_wrong_side_is_a_rival():
    one = case({"torch": 0.1})
    one["sides"]["torch"]["outcome"] = "wrong"
    del one["sides"]["torch"]["wall_s"], one["sides"]["torch"]["wall_quartiles_s"]
    assert places(one) == []
    assert "wrong result, not timed" in html_table(one)


def test_errors_are_compared_in_a_value_that_all_sides_return():
    one = case({"released": 2.0}, errors={"loss": 1e-2})
    one["sides"]["ours-cpu"]["errors"] = {"logp": 1e-6, "loss": 1e-5}
    rows = {row.name: row for row in rows_of(one)}
    assert (rows["ours-cpu"].error, rows["released"].error) == (1e-5, 1e-2)
    assert "loss error" in markdown_table(one)
    assert "1.0e-6" not in markdown_table(one)


def test_rows_are_ours_then_by_time_then_the_bound():
    names = [row.name for row in rows_of(case({"slow": 9.0, "quick": 0.5}))]
    assert names == ["ours-cpu", "quick", "slow", "three_gemms"]


def test_the_best_figure_of_a_column_is_bold_and_the_bound_is_not():
    table = markdown_table(case({"torch": 2.0, "trl": 0.7}))
    lines = {line.split("|")[1].strip("* "): line for line in table.splitlines()[2:]}
    assert "**700 ms**" in lines["Rival trl"]
    assert "**1.00 s**" not in lines["wavalign_fast"]
    assert "**500 ms**" not in lines["three products alone"]
    assert "50%" in lines["wavalign_fast"]


def test_sides_that_did_not_run_are_listed_by_reason():
    one = case({"torch": 2.0})
    for name in ("a", "b"):
        one["sides"][name] = {"label": f"Rival {name}", "outcome": "absent", "detail": "no such"}
    one["sides"]["c"] = {"label": "Rival c", "outcome": "error", "detail": "boom"}
    text = text_table(one)
    assert "Not run (no such): Rival a, Rival b" in text
    assert re.search(r"Rival c +fails: boom", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.00312, "3.12 ms"), (0.0456, "45.6 ms"), (0.9994, "999 ms"), (12.3, "12.30 s")],
)
def test_seconds(value, text):
    assert seconds(value) == text


def test_mebibytes():
    assert (mebibytes(None), mebibytes(0), mebibytes(300 * 2**20)) == ("", "0.0 MiB", "300 MiB")


def test_reasons_are_given_only_where_ours_is_behind():
    assert all(metric in {m.key for m in METRICS} for metric, _ in WHY)
    ahead = case({"cce": 0.5})
    text = page_text({**NOTHING, "dpo": {"cases": [ahead]}})
    assert f"Why: {WHY['time', 'cce']}" in text
    text = page_text({**NOTHING, "dpo": {"cases": [case({"cce": 2.0})]}})
    assert WHY["time", "cce"] not in text


def test_a_rival_without_a_known_reason_is_called_unexplained():
    one = case({"trl": 0.5})
    place = next(place for place in places(one) if place.metric.key == "time")
    assert why(place, one) == UNKNOWN
    one["shape"] |= {"live": 16, "vocab": 512}
    assert why(place, one) == SMALL["time"]


def test_the_headline_counts():
    one = page_text({**NOTHING, "dpo": {"cases": [case({"torch": 2.0})]}})
    assert "First in time in all 1 comparisons" in one
    found = records()
    text = page_text(found)
    assert "First in time in 3 of 4 comparisons, behind in 1" in text
    counted = {s.metric.key: (s.first, s.level, s.behind) for s in standings(
        found["linear_logprob"]["cases"] + found["hybrid_loss"]["cases"])}  # fmt: skip
    assert counted == {"time": (3, 0, 1), "memory": (0, 4, 0), "error": (0, 4, 0)}


def test_the_page_shows_every_case_and_fetches_nothing():
    found = records()
    text, source = page_text(found), render(found)
    for name in ("linear_logprob", "hybrid_loss"):
        for one in found[name]["cases"]:
            assert f"{one['operation']}, {one['dtype']}" in text
    assert "the path of Rival trl" in text
    assert "nobody's <head>" in text
    assert "nobody's <head>" not in source  # escaped
    assert not re.search(r'(src|href|srcset)="(?!data:|#)', source)


@pytest.mark.parametrize("found", [NOTHING, records()], ids=["nothing", "everything"])
def test_the_contents_link_to_every_section(found):
    source = render(found)
    links = re.findall(r'<a href="#([^"]+)">', source)
    assert links == re.findall(r'<section id="([^"]+)">', source)
    assert links[-1] == "how-it-is-measured" and ("growth" in links) == bool(found["growth"])
    assert source.index("Contents") < source.index("<section")


def test_each_table_scrolls_in_its_own_box():
    # A phone is 400 pixels wide, and no table here fits that.
    source = render(records())
    boxed = source.count('<div class="scroll"><table')
    assert boxed == source.count("<table") > 5


def test_the_page_and_the_readme_say_cpu_only_until_a_gpu_has_measured():
    found = records()
    head, _, rest = page_text(found).partition("First in time")
    assert "CPU only: no GPU took part" in head and "CPU only" not in rest
    assert "CPU only" not in page_text(NOTHING)
    assert readme.overview(found).startswith("CPU only: no GPU took part")
    on_gpu = case({"torch": 2.0})
    on_gpu |= {"device": "cuda", "machine": MACHINE | {"gpu": "Some GPU"}}
    found["dpo"] = {"cases": [on_gpu]}
    assert "Measured on the CPU and on Some GPU." in page_text(found)
    assert where_measured({"dpo": found["dpo"]}) == "Measured on Some GPU."
    one_gpu = {"stages": {"stages": {"build": {"rc": 0}}}, "hybrid_loss": found["dpo"]}
    assert where_measured({"gpu_check": one_gpu}) == "Measured on Some GPU."
    one_gpu = {"machine": {"machine": on_gpu["machine"]}}
    assert where_measured({**records(), "gpu_check": one_gpu}).endswith("CPU and on Some GPU.")
    assert "CPU only" not in page_text(found) + readme.overview(found)


def test_figures_that_no_commit_reproduces_are_named():
    found = records()
    assert uncommitted_note(found) == ""
    found["linear_logprob"]["cases"][1]["machine"] = MACHINE | {"commit": "abc1234-dirty"}
    found["spoken_sums"]["machine"] = MACHINE | {"commit": "abc1234-dirty"}
    text = (
        "Measured at commit abc1234 with uncommitted changes: "
        "A head: H 512, V 32768, 1024 rows, logp, fp32; spoken-sums."
    )
    assert uncommitted_note(found) == text
    assert text in page_text(found) and text in readme.overview(found)
    assert "-dirty" not in page_text(found) + readme.spoken_sums(found)


def test_an_installed_package_has_no_commit():
    found = case({"torch": 2.0}) | {"machine": MACHINE | {"commit": None}}
    assert machine_line(found) == "Test CPU, 2 cores, AVX2, torch 2.13.0, 2026-01-01"
    assert uncommitted_note({"dpo": {"cases": [found]}}) == ""


def test_the_recipe_shows_greedy_accuracy_beside_sampled():
    lines = readme.spoken_sums(records()).splitlines()
    assert lines[0].startswith("| arm | text right | text right, greedy | ")
    assert lines[2].startswith("| base | 0.352 | 0.815 | 0.900 | ")
    assert lines[3].startswith("| `wavalign` | 0.595 ± 0.010 | 0.835 ± 0.010 | ")
    assert lines[3].endswith(" | 15 s |")
    assert lines[-1].startswith("2 seeds, ") and "2 at a time, on 2 shared cores" in lines[-1]
    assert "0.5950.8350.9" in page_text(records()).replace(" ± 0.010", "")


def test_a_recipe_without_a_figure_has_an_empty_cell():
    record = spoken_sums()
    del record["base"]["ended"], record["jobs"]
    lines = recipe_markdown(record).splitlines()
    assert lines[2].endswith(" | 0.130 |  |  |")
    assert "One thread per run, on 2 shared cores" in lines[-1]


def test_a_skipping_case_describes_its_rows():
    text = page_text(records())
    assert "made up for a test" in text
    assert "median 2.0e-8, at most 5.0e-3" in text


@pytest.mark.parametrize("missing", [name for name in report.NAMES if records().get(name)])
def test_the_page_is_whole_without_any_one_record(missing):
    page_text({**records(), missing: None})


def test_the_page_of_nothing():
    assert "Nothing was compared" in page_text(NOTHING)


def test_a_case_without_the_newer_fields_has_fewer_columns():
    one = case({"torch": 2.0})
    del one["rates"], one["tolerance"]
    for side in one["sides"].values():
        for name in ("errors", "cpu_quartiles_s", "rounds", "version"):
            side.pop(name, None)
    text = page_text({**NOTHING, "hybrid_loss": {"cases": [one]}})
    assert "gradient error" not in text and "GFLOP/s" not in text
    assert "extra memory" in text


def test_the_table_of_failures():
    record = adversarial()
    counts = failures(record)
    assert counts["torch"] == {"fail": 1, "unsupported": 1, "crash": 1}
    assert counts["ours-cpu"] == {"pass": 3}
    section = adversarial_section(record)
    assert "<td>0 of 3</td><td>2 of 2</td>" in section
    assert "NaN in &lt;dX&gt;" in section
    assert "wants two devices" in section
    del record["not_applicable"], record["cases"][0]["outcomes"]["torch"]
    assert "<td></td>" in adversarial_section(record)


def test_plots_exist_for_what_was_measured():
    assert plots.plot_names(NOTHING) == []
    assert plots.plot_names(records()) == ["overview", "linear_logprob", "hybrid_loss", "growth"]
    assert plots.plot_names({**NOTHING, "dpo": {"cases": [case({})]}}) == ["dpo"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("no"), "the plots need matplotlib: pip install"),
        (ImportError("numpy.core"), "matplotlib cannot be imported: ImportError: numpy.core"),
        (OSError("libfreetype.so"), "matplotlib cannot be imported: OSError: libfreetype.so"),
        (SystemExit(1), "matplotlib cannot be imported: SystemExit: 1"),
    ],
)
def test_a_matplotlib_that_cannot_be_imported_is_reported(failing_import, error, message):
    failing_import("matplotlib", error)
    with pytest.raises(plots.NoMatplotlibError, match=message):
        plots.figures(records())


def test_plots_are_drawn_for_light_and_for_dark_pages(tmp_path):
    pytest.importorskip("matplotlib")
    found = records()
    found["linear_logprob"]["cases"][0]["sides"]["torch"]["extra_bytes_beyond_gradients"] = 0
    written = plots.write_plots(found, tmp_path)
    names = plots.plot_names(found)
    assert {path.name for path in written} == {
        f"{name}-{theme}.png" for name in names for theme in ("light", "dark")
    }
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
    light, dark = (brightness(tmp_path / f"growth-{theme}.png") for theme in ("light", "dark"))
    assert light > 200 and dark < 60
    assert render(found).count('srcset="data:image/png') == len(names)
    draw = plots.figures(found)["growth"]
    assert plots.data_uri(draw, plots.LIGHT).startswith("data:image/png;base64,iVBOR")


def brightness(path) -> float:
    from PIL import Image

    picture = Image.open(path).convert("L")
    return sum(picture.tobytes()) / (picture.width * picture.height)


def test_a_plot_depends_on_nothing_but_its_record(tmp_path):
    pytest.importorskip("matplotlib")
    draw = plots.figures({**NOTHING, "growth": growth()})["growth"]
    assert plots.png(draw, plots.LIGHT) == plots.png(draw, plots.LIGHT)


def test_without_matplotlib_the_page_says_so_and_the_command_fails(monkeypatch, capsys):
    for name in ("side_plots", "growth_plot"):
        monkeypatch.delitem(sys.modules, f"benchmarks.report.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "No plots: the plots need matplotlib: pip install" in page_text(records())
    assert report.main([]) == 2
    assert "pip install 'wavalign-fast[bench]'" in capsys.readouterr().err


def test_the_readme_has_the_measured_figures():
    found = report.read_records(report.RESULTS)
    pages = readme.read_pages()
    assert readme.rendered(pages, found) == pages, "run: python -m benchmarks.report"
    assert report.main(["--check"]) == 0


def test_the_plots_that_the_pages_show_are_there():
    shown = [
        readme.ROOT / page / ".." / path
        for page, text in readme.read_pages().items()
        for path in re.findall(r'"([^"]*benchmarks/plots/[^"]+)"', text)
    ]
    assert len(shown) > 3 and all(path.resolve().exists() for path in shown)


def test_a_readme_out_of_date_is_found():
    found = report.read_records(report.RESULTS)
    pages = readme.read_pages()
    side = found["hybrid_loss"]["cases"][0]["sides"]["ours"]
    side["wall_s"] *= 1.5
    after = readme.rendered(pages, found)
    changed = {page for page in pages if after[page] != pages[page]}
    assert "docs/benchmarks.md" in changed


def test_blocks_follow_the_records():
    full = readme.rendered(readme.read_pages(), records())
    for page in ("README.md", "docs/benchmarks.md"):
        text = "Over the 4 measured cases, ours is first in time in 3, behind in 1;"
        assert text in full[page], page
    measured = full["docs/benchmarks.md"]
    assert measured.count("<picture>") == 2
    assert measured.count('"../benchmarks/plots/') == 4
    assert "wavalign_fast: rows: time 1.00, extra memory 0.00; vocab: time" in measured
    empty = readme.rendered(full, NOTHING)
    assert "Over the" not in "".join(empty.values())
    assert "<picture>" not in empty["docs/benchmarks.md"]
    assert readme.rendered(empty, records()) == full


def test_a_page_without_its_markers_is_an_error():
    with pytest.raises(ValueError, match=r"README.md has 0 places for headline, want 1"):
        readme.rendered({"README.md": "# nothing here"}, NOTHING)
