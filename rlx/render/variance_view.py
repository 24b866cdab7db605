"""The ladder of gradient estimators in the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rlx.render.tables import make_table

if TYPE_CHECKING:
    from rich.console import Console

    from rlx.evaluation.gradient_ladder import Ladder, Rung
    from rlx.evaluation.gradient_moments import Estimate


def print_ladder(console: Console, ladder: Ladder) -> None:
    """Print everything but the path of the figure."""

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, soft_wrap=True)

    line(f"{ladder.title} on {ladder.env}: {ladder.num_episodes:,} episodes of {ladder.mean_length:.0f} steps on average, "
         f"{ladder.num_env_steps:,} env steps in all, discount {ladder.discount:g}")  # fmt: skip
    line(f"V and Q were fitted to other episodes; V explains {ladder.value_explained:.2f} of the returns' variance here, and Q - V "
         f"{max(0.0, ladder.gain_explained):.2f} of the rest", "dim")  # fmt: skip
    line(f"reference: {ladder.reference}; its expected cosine to the exact gradient is {ladder.reference_quality:.2f}", "dim")
    console.print()
    sizes = list(ladder.rungs[0].cosine)
    table = make_table("estimator", "variance", "95 % interval", "of R(τ)", "bias", "SNR 1 at", *(f"cos of {n}" for n in sizes))
    for rung in ladder.rungs:
        total = rung.variance["all"]
        table.add_row(rung.name, _short(total.value), f"{_short(total.low)} to {_short(total.high)}", f"{100 * rung.relative.value:.3g} %",
                      _bias(rung), _episodes(rung.episodes_for_snr_1), *(f"{rung.cosine[n].value:.2f}" for n in sizes))  # fmt: skip
    console.print(table)
    line("variance: trace of the covariance of one episode's gradient, sum_t grad log pi(a_t|s_t) A_t; of a batch of M episodes it is 1/M "
         "of that", "dim")  # fmt: skip
    line("bias: distance of the expected gradients, in lengths of the reference's; SNR 1 at: episodes in a batch with as much noise as "
         "signal; cos of M: mean cosine of batches of M episodes to the reference", "dim")  # fmt: skip
    console.print()
    _print_groups(console, ladder)
    table = make_table("first steps of an episode", *ladder.horizons[0].variance)
    for at in ladder.horizons:
        table.add_row(str(at.horizon), *(_short(x.value) for x in at.variance.values()))
    console.print(table)
    line("variance where an episode is cut after so many steps and continues as V", "dim")
    console.print()
    factor = ladder.factor
    value, low, high = (f"{x:,.0f}" if x >= 1000.0 else f"{x:.3g}" for x in (factor.value, factor.low, factor.high))
    line(f"R(τ) has {value} times the variance of GAE(0.95) (95 % interval {low} to {high})")


def _print_groups(console: Console, ladder: Ladder) -> None:
    groups = [name for name in ladder.rungs[0].variance if name != "all"]
    table = make_table("variance of", *groups)
    for rung in ladder.rungs:
        if rung.name in ("R(τ)", "to go", "to go - V", "Q - V", "GAE(0.95)", "GAE(0)"):
            table.add_row(rung.name, *(_short(rung.variance[name].value) for name in groups))
    console.print(table)
    console.print()


def _short(value: float) -> str:
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e5 or value == 0.0 else f"{value:.1e}"


def _bias(rung: Rung) -> str:
    """The bias where it can be told from 0."""
    if rung.unbiased:
        return "none"
    return f"{rung.bias.value:.2f} ({rung.bias.low:.2f} to {rung.bias.high:.2f})" if rung.bias.low > 0.0 else f"below {rung.bias.high:.2f}"


def _episodes(found: Estimate) -> str:
    return _short(found.value) if math.isfinite(found.value) else "no signal"
