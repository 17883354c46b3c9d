"""Megatron loads an optimizer's checkpoint for TransformerEngine's FusedAdam and bfloat16 weights.

Here torch's AdamW is in FusedAdam's place, which counts its steps for every weight, and the weights are float32.
"""

import torch


def complete(distrib_optimizer):
    """`distrib_optimizer` is the module megatron.core.optimizer.distrib_optimizer."""
    _state_before_the_first_step(torch.optim.AdamW)
    _own_steps(distrib_optimizer.DistributedOptimizer)


def _state_before_the_first_step(adam):
    state_dict = adam.state_dict

    def with_state(self):
        for parameter in [parameter for group in self.param_groups for parameter in group["params"]]:
            if not self.state[parameter]:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter].update(step=torch.tensor(0.0), **zeros)
        return state_dict(self)

    adam.state_dict = with_state


def _own_steps(optimizer):
    """Megatron restores one step for all weights, and then looks for it among the tensors of each."""
    set_states = optimizer._set_main_param_and_optimizer_states

    @torch.no_grad()  # float32 masters are views of the weights themselves
    def with_step(self, model_param, tensors):
        group, place = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][place]]
        state["step"] = state["step"].clone()
        set_states(self, model_param, {"step": state["step"], **tensors})

    optimizer._set_main_param_and_optimizer_states = with_step
