"""A bound on memory: weights, gradients and optimizer, were they spread evenly over the stages."""

from __future__ import annotations

from parlaunch.estimate.states import bytes_a_parameter
from parlaunch.hardware.rates import Rates
from parlaunch.model.parameters import embedding_weights, head_weights, layer_weights, mtp_weights
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Wishes


class Floor:
    """What the fullest GPU holds at least, of layouts without FSDP."""

    def __init__(self, recipe: Recipe, rates: Rates, wishes: Wishes) -> None:
        self.recipe = recipe
        each = bytes_a_parameter(recipe.precision, recipe.features, rates.product.arch)
        trained = not recipe.frozen
        self._held = min(each.layer_weight, each.other_weight) + (each.gradient if trained else 0.0)
        self._optimizer = each.optimizer if trained else 0.0
        self._limit = rates.memory_bytes * (1 - wishes.headroom)
        self._known: dict[tuple[int, int, int, int, int, int], bool] = {}
        self._dense: dict[int, float] = {}  # by TP
        self._routed = 0.0

    def fits(self, tp: int, pp: int, ep: int, etp: int, dp_cp: int, edp: int) -> bool:
        """Whether weights, gradients and optimizer would fit if stages were perfectly even."""
        key = (tp, pp, ep, etp, dp_cp, edp)
        known = self._known.get(key)
        if known is None:
            dense, routed = self._parameters(tp)
            spread, experts = (dp_cp, edp) if self.recipe.features.distributed_optimizer else (1, 1)
            needed = dense / pp * (self._held + self._optimizer / spread)
            needed += routed / (pp * ep * etp) * (self._held + self._optimizer / experts)
            known = self._known[key] = needed <= self._limit
        return known

    def _parameters(self, tp: int) -> tuple[float, float]:
        """Parameters of the model outside and inside routed experts: on one TP rank, and in all."""
        a = self.recipe.architecture
        known = self._dense.get(tp)
        if known is None:
            weights = embedding_weights(a, tp).plus(head_weights(a, tp)).plus(mtp_weights(a))
            kinds = a.layers()
            for kind in set(kinds):
                weights = weights.plus(layer_weights(a, kind).times(kinds.count(kind)))
            known = self._dense[tp] = weights.replicated + weights.sharded / tp
            self._routed = float(weights.routed)
        return known, self._routed
