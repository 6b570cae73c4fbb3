"""Pictures for the lead's pages: SVG that stands in the page, drawn here, coloured by classes of static/lead.css.

No script and no style attribute: the page's policy lets in neither. Text that comes from people is escaped. Every chart
says in words what it shows, and a table stands beside it. Lengths are of a view of 400 units.
"""

from collections.abc import Sequence
from math import floor, log10

from markupsafe import Markup, escape

WIDTH = 400
LABELS = 108  # of rows
MAX_LABEL = 15  # characters
MAX_COLUMN_LABELS = 8
ROW, COLUMN_HEIGHT = 26, 150


def columns(rows: Sequence[dict], alt: str) -> Markup:
    """Upright bars: rows [{"label", "value", "told", "expected"?}]; told: what a pointer at the bar reads."""
    left, top, bottom = 34, 10, COLUMN_HEIGHT
    most = max([row["value"] for row in rows] + [row.get("expected") or 0 for row in rows], default=0)
    ticks = [0, 1] if most == 1 and isinstance(most, int) else nice_ticks(most)  # a count of 1 is no share
    height = lambda value: (bottom - top) * value / ticks[-1]  # noqa: E731
    step = (WIDTH - left) / max(len(rows), 1)
    wide, parts = max(min(step * 0.72, 48), 1), []
    for tick in ticks:
        y = bottom - height(tick)
        parts += [_line(left, y, WIDTH, y, "grid"), _text(left - 6, y + 4, tick_label(tick, ticks), "end")]
    for n, row in enumerate(rows):
        middle, tall = left + step * (n + 0.5), height(row["value"])
        parts.append(_rect(middle - wide / 2, bottom - tall, wide, tall, "bar", row["told"]))
        if row.get("expected") is not None:
            y = bottom - height(row["expected"])
            parts.append(_line(middle - step * 0.46, y, middle + step * 0.46, y, "expected"))
        if n % -(-len(rows) // MAX_COLUMN_LABELS) == 0:
            parts.append(_text(middle, bottom + 16, row["label"], "middle"))
    return _svg(parts, bottom + 22, alt)


def bars(rows: Sequence[dict], alt: str) -> Markup:
    """Bars to the right, the value at their end: rows [{"label", "value", "told"}]."""
    most, parts = max((row["value"] for row in rows), default=0) or 1, []
    for n, row in enumerate(rows):
        y, long = n * ROW, (WIDTH - LABELS - 48) * row["value"] / most
        parts += [_row_label(row["label"], y), _rect(LABELS, y + 5, long, ROW - 10, "bar", row["told"])]
        parts.append(_text(LABELS + long + 6, y + 17, f"{row['value']:,}", "start", "value"))
    return _svg(parts, len(rows) * ROW, alt)


def whiskers(rows: Sequence[dict], alt: str, low: float = 0.0, high: float = 1.0, mark: float | None = None) -> Markup:
    """A dot with its 95 % interval for each row: [{"label", "figure": FIGURE, "told"}], on an axis from low to high.

    mark: a value to compare with, as a dashed line. Shares, from 0 to 1, are shown in percent.
    """
    right = WIDTH - 14
    at = lambda value: LABELS + (right - LABELS) * (min(max(value, low), high) - low) / (high - low)  # noqa: E731
    bottom, is_share = len(rows) * ROW + 4, (low, high) == (0.0, 1.0)
    parts = []
    for tick in (low + (high - low) * n / 4 for n in range(5)):
        label = f"{100 * tick:.0f} %" if is_share else f"{tick:.1f}".replace("-", "\N{MINUS SIGN}")
        parts += [_line(at(tick), 0, at(tick), bottom, "grid"), _text(at(tick), bottom + 15, label, "middle")]
    if mark is not None:
        parts.append(_line(at(mark), 0, at(mark), bottom, "expected"))
    for n, row in enumerate(rows):
        parts += [_row_label(row["label"], n * ROW), *_whisker(row, n * ROW + ROW / 2, at)]
    return _svg(parts, bottom + 22, alt)


def win_bar(pair: dict, alt: str) -> Markup:
    """Wins, ties and losses of a pair as one bar, the win rate (a tie half) with its interval below, 50 % marked."""
    num, at, start, parts = sum(pair[name] for name in ("wins", "ties", "losses")), lambda share: WIDTH * share, 0, []
    for name in ("wins", "ties", "losses"):
        wide = WIDTH * pair[name] / num
        parts.append(_rect(start, 0, wide, 30, name, f"{pair[name]} {name}"))
        if wide > 30:
            parts.append(_text(start + wide / 2, 20, f"{100 * pair[name] / num:.0f} %", "middle", f"on-{name}"))
        start += wide
    parts.append(_line(at(0.5), 0, at(0.5), 62, "expected"))
    parts += _whisker({"figure": pair, "told": alt}, 46, at)
    parts += [_text(x, 76, label, side) for x, label, side in ((0, "0 %", "start"), (200, "50 %", "middle"))]
    return _svg([*parts, _text(WIDTH, 76, "100 %", "end")], 80, alt)


# -- axes --


def nice_ticks(most: float) -> list[float]:
    """0 and up to four round values above it, of which the last is at least `most`."""
    if most <= 0:
        return [0, 1]
    power = 10 ** floor(log10(most / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if power * factor * 4 >= most * (1 - 1e-9))
    number = next(n for n in range(1, 5) if step * n >= most * (1 - 1e-9))
    return [step * n for n in range(number + 1)]


def tick_label(tick: float, ticks: Sequence[float]) -> str:
    """Shares in percent, counts as they are."""
    return f"{100 * tick:.0f} %" if ticks[-1] <= 1 and ticks != [0, 1] else f"{tick:,.4g}"


# -- parts --


def _whisker(row, y, at):
    figure = row["figure"]
    if figure["value"] is None:
        return [_text(LABELS + 6, y + 4, "no data", "start")]
    parts = []
    if figure["low"] is not None:
        low, high = at(figure["low"]), at(figure["high"])
        parts = [_line(low, y, high, y, "interval"), *(_line(x, y - 5, x, y + 5, "interval") for x in (low, high))]
    title = Markup("<title>{}</title>").format(row["told"])
    circle = Markup('<circle class="dot" cx="{}" cy="{}" r="5">{}</circle>')
    return [*parts, circle.format(_n(at(figure["value"])), _n(y), title)]


def _row_label(label, y):
    short = label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return _text(LABELS - 8, y + 17, short, "end", "label")


def _rect(x, y, width, height, name, told):
    shape = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2"><title>{}</title></rect>')
    return shape.format(name, *map(_n, (x, y, width, height)), told)


def _line(x1, y1, x2, y2, name):
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(name, *map(_n, (x1, y1, x2, y2)))


def _text(x, y, text, anchor, name="tick"):
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(name, _n(x), _n(y), anchor, text)


def _n(number):
    return f"{number:.1f}".removesuffix(".0")


def _svg(parts, height, alt):
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, _n(height), alt)
    return head + Markup("").join(map(escape, parts)) + Markup("</svg>")
