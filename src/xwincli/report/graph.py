"""The run's artifacts as a picture: what was made from what, in layers from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import PurePath

from xwincli.console import clock
from xwincli.report.collect import Artifact
from xwincli.report.svg import picture, text

WIDTH, HEIGHT, GAP_X, GAP_Y = 158, 40, 16, 40
Spot = tuple[str, int]  # a node in its own layer, or the trunk of its edges in a layer below


def depths(artifacts: Sequence[Artifact]) -> dict[str, int]:
    """Each artifact's layer, one below its deepest source; an outside input is right above its first user."""
    made = {a.path: a for a in artifacts}
    found: dict[str, int] = {}

    def depth(path: str, below: tuple[str, ...] = ()) -> int:
        if path not in made or path in below:  # an outside input, or manifests that name each other
            return 0
        if path not in found:
            found[path] = 1 + max((depth(s, (*below, path)) for s in made[path].sources), default=0)
        return found[path]

    for a in artifacts:
        depth(a.path)
    for a in sorted(artifacts, key=lambda a: found[a.path]):
        for s in a.sources:
            if s not in made:
                found.setdefault(s, found[a.path] - 1)
    top = min(found.values(), default=0)
    return {path: d - top for path, d in found.items()}


def _route(artifacts: Sequence[Artifact]) -> tuple[list[list[Spot]], list[tuple[Spot, Spot]]]:
    """Spots of every layer and the steps between neighbouring layers.

    An edge over several layers goes down its source's trunk, one spot a layer that all its edges share.
    """
    depth = depths(artifacts)
    rows: list[list[Spot]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name in sorted(depth, key=lambda n: (depth[n], n)):
        rows[depth[name]].append((name, depth[name]))
    steps: dict[tuple[Spot, Spot], None] = {}
    for a in artifacts:
        for s in a.sources:
            for d in range(depth[s] + 1, depth[a.path]):
                if (s, d) not in rows[d]:
                    rows[d].append((s, d))
                steps[((s, d - 1), (s, d))] = None
            steps[((s, depth[a.path] - 1), (a.path, depth[a.path]))] = None
    return rows, list(steps)


def _spread(wanted: list[float], widths: list[float]) -> list[float]:
    """Middles as near the wanted ones as their order and widths allow."""
    placed: list[float] = []
    for i, x in enumerate(wanted):
        least = placed[-1] + (widths[i - 1] + widths[i]) / 2 + GAP_X if placed else x
        placed.append(max(x, least))
    shift = sum(w - p for w, p in zip(wanted, placed, strict=True)) / len(placed)
    return [p + shift for p in placed]


def place(artifacts: Sequence[Artifact]) -> tuple[dict[Spot, float], list[tuple[Spot, Spot]]]:
    """The middle of every spot from left to right (pixels from 0), and the steps to draw."""
    rows, steps = _route(artifacts)
    depth = depths(artifacts)
    near: dict[Spot, list[Spot]] = {spot: [] for row in rows for spot in row}
    for one, two in steps:
        near[one].append(two)
        near[two].append(one)

    def width(spot: Spot) -> float:
        return WIDTH if depth[spot[0]] == spot[1] else 0

    x = {spot: i * float(WIDTH + GAP_X) for row in rows for i, spot in enumerate(row)}
    for _ in range(24):
        for row in rows:
            wanted = {s: sum(x[n] for n in near[s]) / len(near[s]) if near[s] else x[s] for s in row}
            row.sort(key=lambda s: wanted[s])
            x.update(zip(row, _spread([wanted[s] for s in row], [width(s) for s in row]), strict=True))
    left = min((x[s] - width(s) / 2 for s in x), default=0)
    return {s: x[s] - left for s in x}, steps


def _short(name: str, room: int = 19) -> str:
    """A path's end, cut in the middle if it is too long."""
    name = name if len(name) <= room else PurePath(name).name
    return name if len(name) <= room else f"{name[: room - 9]}…{name[-8:]}"


def _node(name: str, artifact: Artifact | None, x: float, y: float) -> str:
    stage = str(artifact.manifest.get("stage", "")) if artifact else "input"
    note = f"{stage} · {clock(artifact.seconds)}" if artifact else stage
    counts = artifact.manifest.get("counts") or {} if artifact else {}
    tip = "\n".join([name, note, *(f"{k}: {v}" for k, v in counts.items())])
    kind = "node" if artifact else "node source"
    box = f'<rect class="{kind}" x="{x:.1f}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
    words = text(x + 10, y + 17, _short(name), kind="title") + text(x + 10, y + 32, note, kind="stage")
    return f"<g><title>{escape(tip)}</title>{box}{words}</g>"


def draw(artifacts: Sequence[Artifact]) -> str:
    """The graph as SVG; every node says its file, stage and seconds, and its counts to a pointer."""
    made = {a.path: a for a in artifacts}
    depth = depths(artifacts)
    x, steps = place(artifacts)
    if not x:
        return ""

    def top(spot: Spot) -> float:
        return 4 + spot[1] * (HEIGHT + GAP_Y)

    body = []
    for one, two in steps:
        u, v, start, end = x[one] + 2, x[two] + 2, top(one) + HEIGHT, top(two)
        bend = GAP_Y / 2
        trunk = f"V{end + HEIGHT:g}" if depth[two[0]] != two[1] else ""
        curve = f"M{u:.1f} {start:g}C{u:.1f} {start + bend:g} {v:.1f} {end - bend:g} {v:.1f} {end:g}{trunk}"
        body.append(f'<path class="edge" d="{curve}"/>')
    nodes = [spot for spot in x if depth[spot[0]] == spot[1]]
    body += [_node(s[0], made.get(s[0]), x[s] + 2 - WIDTH / 2, top(s)) for s in nodes]
    width = max(x[s] + (WIDTH / 2 if s in nodes else 0) for s in x) + 4
    return picture(width, top(max(x, key=top)) + HEIGHT + 4, body, "what was made from what")
