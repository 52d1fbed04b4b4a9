"""The demo's results: a table on the terminal, JSON, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from jinja2 import Environment, select_autoescape
from rich.console import Console
from rich.table import Table

from dyntok_jax.colour import boundaries, readable
from dyntok_jax.demo.drawing import new_axes, svg
from dyntok_jax.demo.measure import DecoderResult, EncoderResult
from dyntok_jax.types import Token

Name = Callable[[Token], str]
Results = tuple[Mapping[str, EncoderResult], Mapping[str, DecoderResult]]


def saved(result: EncoderResult | DecoderResult) -> float:
    """Percent of the tokens that merging saves."""
    return 100 * (1 - result.tokens_dynamic / result.tokens_static)


def print_report(console: Console, results: Results, names: Sequence[str], name: Name) -> None:
    """Boundaries before and after, then one row a language."""
    encoder, decoder = results
    for language, result in encoder.items():
        console.print(f"[bold]{language}[/] before", boundaries(result.static, name))
        console.print(f"{'':{len(language)}} after ", boundaries(result.dynamic, name))
    table = Table(title="Merged to words")
    for column in ("", *_COLUMNS):
        table.add_column(column, justify="right" if column else "left")
    for language in encoder:
        table.add_row(language, *_cells(encoder[language], decoder[language]))
    console.print(table)
    console.print(f"(1) {names[0]}   (2) {names[1]}   times are static → dynamic, best of five")


_COLUMNS = (
    "tokens saved (1)",
    "similarity (1)",
    "ms (1)",
    "tokens saved (2)",
    "bits/byte (2)",
    "ms (2)",
)


def _cells(encoder: EncoderResult, decoder: DecoderResult) -> list[str]:
    return [
        f"{saved(encoder):.0f} %",
        f"{encoder.similarity:.3f}",
        f"{1e3 * encoder.seconds_static:.0f} → {1e3 * encoder.seconds_dynamic:.0f}",
        f"{saved(decoder):.0f} %",
        f"{decoder.bits_static:.2f} → {decoder.bits_dynamic:.2f}",
        f"{1e3 * decoder.seconds_static:.0f} → {1e3 * decoder.seconds_dynamic:.0f}",
    ]


def as_json(results: Results, names: Sequence[str], name: Name) -> dict[str, Any]:
    """All figures, and the boundaries as readable text."""
    encoder, decoder = results
    languages = {}
    for language, result in encoder.items():
        figures = asdict(result)
        for side in ("static", "dynamic"):
            tokens = getattr(result, side)
            figures[side] = [name(t) if isinstance(t, int) else readable(t) for t in tokens]
        languages[language] = {"encoder": figures, "decoder": asdict(decoder[language])}
    return {"encoder": names[0], "decoder": names[1], "languages": languages}


def page(results: Results, names: Sequence[str], name: Name) -> str:
    """The HTML page; plots are drawings inside it, nothing is fetched."""
    encoder, decoder = results
    environment = Environment(autoescape=select_autoescape(default=True))
    template = environment.from_string(
        files("dyntok_jax.demo").joinpath("page.html").read_text("utf-8")
    )
    return template.render(
        names=names,
        columns=_COLUMNS,
        rows=[(key, _cells(encoder[key], decoder[key])) for key in encoder],
        examples=[
            (language, [_spans(result.static, name), _spans(result.dynamic, name)])
            for language, result in encoder.items()
        ],
        plots=_plots(encoder, decoder),
    )


def _spans(tokens: Sequence[Token], name: Name) -> list[tuple[str, str]]:
    return [
        ("special", name(token))
        if isinstance(token, int)
        else (f"token{rank % 3}", readable(token))
        for rank, token in enumerate(tokens)
    ]


def _plots(encoder: Mapping[str, EncoderResult], decoder: Mapping[str, DecoderResult]) -> list[str]:
    languages = list(encoder)
    first, second = [encoder[key] for key in languages], [decoder[key] for key in languages]
    speedup = "time static ÷ dynamic"
    return [
        _bars(languages, "tokens saved (%)", encoder=map(saved, first), decoder=map(saved, second)),
        _bars(
            languages,
            speedup,
            encoder=(r.seconds_static / r.seconds_dynamic for r in first),
            decoder=(r.seconds_static / r.seconds_dynamic for r in second),
        ),
        _bars(languages, "similarity to static vectors", encoder=(r.similarity for r in first)),
        _bars(
            languages,
            "bits per byte of the continuation",
            static=(r.bits_static for r in second),
            dynamic=(r.bits_dynamic for r in second),
        ),
    ]


def _bars(languages: Sequence[str], title: str, **series: Any) -> str:
    """A bar chart as an SVG element."""
    axes = new_axes(title)
    width = 0.8 / len(series)
    for rank, (label, values) in enumerate(series.items()):
        places = [i + (rank - (len(series) - 1) / 2) * width for i in range(len(languages))]
        axes.bar(places, list(values), width, label=label)
    axes.set_xticks(range(len(languages)), languages)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return svg(axes)
