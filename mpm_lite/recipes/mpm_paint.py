"""MPM, text to image (VisCPM-Paint): a diffusion model that learned from English prompts is prompted in other languages.

Method (2308.12038, section 3.3). A frozen multilingual language model reads the prompt. A linear map and LayerNorm bring its
token states to the width of a UNet's cross-attention. The UNet comes from a diffusion model that was pretrained with an
English text encoder. Its cross-attention and that linear map learn, from English pairs only, and nothing else does (stage
*re-alignment*). *From scratch*, the whole UNet learns. The objective is the error of the predicted velocity (v-prediction,
2202.00512), weighted by min-SNR (2303.09556); the paper predicts noise, at uniform weight. A tenth of the pictures come
without their prompt, for classifier-free guidance (2207.12598). A running mean of the weights does the painting.

Shapes: N pictures, C latent channels, S latent side, T tokens of the longest prompt, W the prompt encoder's width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import compute_snr
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mpm_lite.core.runtime import UserError, unknown
from mpm_lite.recipes.base import Recipe, Stage, sample_bytes
from mpm_lite.recipes.modules.diffusion import Bridge, noise_schedule
from mpm_lite.towers.prompts import States

LEARNS = ("all", "cross-attention")
PREDICTS = ("v_prediction", "epsilon")


@dataclass(frozen=True)
class MpmPaintOptions:
    """Every dial of the recipe."""

    learns: str = "cross-attention"  # of the UNet, beside the bridge; "all": from scratch
    steps: int = 1500
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.0
    unprompted: float = 0.1  # share of pictures whose prompt is left out
    min_snr: float = 5.0  # 0: each step weighs the same
    average: float = 0.995  # how much of the running mean stays at each step; 0: no mean, the weights as they are
    bf16: bool = False


class Prompted:
    """Pictures with prompts as training data. Example k is the picture `latents[pictures[k]]`, of latents (M, C, S, S), and
    the k-th of the prompts' token states."""

    def __init__(self, latents: Tensor, pictures: Sequence[int], states: States) -> None:
        if len(pictures) != len(states):
            raise UserError(f"{len(pictures)} pictures and {len(states)} prompts differ.")
        self.latents, self.pictures, self.states = latents, torch.as_tensor(list(pictures)), states
        told = sample_bytes(latents) + self.pictures.float().numpy().tobytes() + sample_bytes(states.flat, 512)
        self.digest = hashlib.sha256(told + states.starts.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """`latents` (N, C, S, S), `states` (N, T, W), `there` bool (N, T)."""
        states, there = self.states.batch(indices.tolist())
        return {"latents": self.latents[self.pictures[indices]].float(), "states": states, "there": there}


class MpmPaint(Recipe):
    """A bridge and a UNet. To paint, give `parts` to `diffusion.sample_latents`."""

    name = "mpm_paint"
    Options = MpmPaintOptions

    def __init__(
        self, unet: Any, width: int, options: MpmPaintOptions = MpmPaintOptions(), schedule: Any = None
    ) -> None:
        """`unet` is a diffusers UNet2DConditionModel, taken over as it is. `width` is the prompt encoder's, W. `schedule` is the
        one that the UNet was trained with; it says whether the UNet predicts velocity or noise (None: velocity, cosine).

        Raises UserError for an unknown part to train, a share out of range, and a UNet that predicts anything else.
        """
        super().__init__()
        if options.learns not in LEARNS:
            raise unknown("part of the UNet to train", options.learns, LEARNS)
        if not 0 <= options.unprompted < 1:
            raise UserError(f"unprompted={options.unprompted} is a share of the pictures, from 0 to under 1.")
        self.options = options
        cross = unet.config.cross_attention_dim
        bridge = Bridge(width, cross if isinstance(cross, int) else cross[0])
        self.now = nn.ModuleDict({"unet": unet, "bridge": bridge})
        self.mean = AveragedModel(self.now, multi_avg_fn=get_ema_multi_avg_fn(options.average))
        self.schedule = schedule or noise_schedule()
        self.predicts = self.schedule.config.prediction_type
        if self.predicts not in PREDICTS:
            raise UserError(f"The UNet predicts {self.predicts!r}; this recipe trains those that predict {PREDICTS}.")
        self.encoder: Any = None  # the prompt encoder, which whoever trains or loads the recipe sets

    def stages(self) -> list[Stage]:
        predicted = "noise" if self.predicts == "epsilon" else "velocity"
        weighed = "weighted by min-SNR" if self.options.min_snr else "uniform steps of time"
        objective, how = f"squared error of the {predicted}, {weighed}", {"clip": 1.0, "beta2": 0.99}
        learns, frozen = ("now.bridge",), ("prompt encoder", "autoencoder")
        if self.options.learns == "all":
            return [Stage.of(self.options, "from scratch", (*learns, "now.unet"), frozen, objective, **how)]
        attends = [f"now.{name}" for name, _ in self.now.named_modules() if name.endswith("attn2")]
        learns, frozen = (*learns, *attends), (*frozen, "the UNet but its cross-attention")
        return [Stage.of(self.options, "re-alignment", learns, frozen, objective, **how)]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = batch["latents"]
        noise, told = torch.randn_like(x), torch.rand(len(x), device=x.device) >= self.options.unprompted
        t = torch.randint(self.schedule.config.num_train_timesteps, (len(x),), device=x.device)
        noisy = self.schedule.add_noise(x, noise, t)
        wanted = noise if self.predicts == "epsilon" else self.schedule.get_velocity(x, noise, t)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.options.bf16):
            context, there = self.now["bridge"](batch["states"], batch["there"], told)
            said = self.now["unet"](noisy, t, context, encoder_attention_mask=there).sample
        error = F.mse_loss(said.float(), wanted, reduction="none").mean(dim=(1, 2, 3))  # (N,)
        if not self.options.min_snr:
            return error.mean()
        snr = compute_snr(self.schedule, t)
        # What an error in the clean picture weighs, in units of what is predicted (2303.09556, section 3.4).
        return (error * snr.clamp(max=self.options.min_snr) / (snr + (self.predicts != "epsilon"))).mean()

    def stepped(self) -> None:
        """Let the running mean follow the weights."""
        self.mean.update_parameters(self.now)

    @property
    def painter(self) -> nn.ModuleDict:
        """The {"unet", "bridge"} that paint: the running mean."""
        return self.mean.module

    @property
    def parts(self) -> tuple[Any, Any, Any]:
        """UNet, bridge and schedule, as `diffusion.sample_latents` and a `PaintPipeline` take them."""
        return self.painter["unet"], self.painter["bridge"], self.schedule
