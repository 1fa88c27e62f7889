"""The optimizers: every weight is in exactly one of them."""

from model.config import LlamaConfig
from model.llama import Llama
from tests.helpers.training import TINY_SHAPE
from train.optimizer import OptimizerOptions, build_optimizers


def test_muon_updates_hidden_matrices_and_adamw_the_rest() -> None:
    """Catch a weight in no optimizer or in two, and weight decay on norms."""
    model = Llama(LlamaConfig(99, num_key_value_heads=4, **TINY_SHAPE))
    optimizers = build_optimizers(model, OptimizerOptions())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    updated = {}
    undecayed = []
    for optimizer_name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group_names = [names[id(parameter)] for parameter in group["params"]]
            updated.setdefault(optimizer_name, []).extend(group_names)
            if group["weight_decay"] == 0:
                undecayed += group_names
    assert sorted(updated["muon"] + updated["adamw"]) == sorted(names.values())
    assert len(updated["muon"]) == 14 and all("_proj" in name for name in updated["muon"])
    assert len(undecayed) == 5 and all("norm" in name for name in undecayed)
