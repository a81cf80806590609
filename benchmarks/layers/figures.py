"""The figures of a layer: rates, shares, and a sentence that says what its time goes into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class LayerFigures:
    """What was measured of all layers of one geometry.

    Attributes:
        name: Module path of the first of them.
        geometry: Channels, kernel, stride, image.
        count: How many layers of the model have it.
        masked: Whether its weights have a mask.
        kernel: What ran it; "dense" if dense torch was the fastest.
        seconds: Time of one call.
        dense_seconds: Time of one call on dense torch.
        flops: Useful FLOPs of one call: two for each kept weight and output position.
        computed_flops: FLOPs that the kernel does: stored zeros and pixels computed twice count.
        size_bytes: Bytes of input, output, residual, packed weights and indices.
        copy_seconds: Time of a copy that reads and writes as many bytes.
        gemm: FLOP/s of the best product timed in turns with it.
    """

    name: str
    geometry: str
    count: int
    masked: bool
    kernel: str
    seconds: float
    dense_seconds: float
    flops: int
    computed_flops: int
    size_bytes: int
    copy_seconds: float
    gemm: float

    @property
    def rate(self) -> float:
        """Useful FLOP/s."""
        return self.flops / self.seconds

    @property
    def intensity(self) -> float:
        """Useful FLOPs a byte."""
        return self.flops / self.size_bytes

    def join(self, other: LayerFigures) -> LayerFigures:
        """Return the mean of two kinds of layers that have one geometry, e.g. with and without a residual."""
        count = self.count + other.count

        def mean(mine: float, theirs: float) -> float:
            return (mine * self.count + theirs * other.count) / count

        return replace(
            self,
            count=count,
            kernel="; ".join(dict.fromkeys([*self.kernel.split("; "), *other.kernel.split("; ")])),
            seconds=mean(self.seconds, other.seconds),
            dense_seconds=mean(self.dense_seconds, other.dense_seconds),
            flops=round(mean(self.flops, other.flops)),
            computed_flops=round(mean(self.computed_flops, other.computed_flops)),
            size_bytes=round(mean(self.size_bytes, other.size_bytes)),
            copy_seconds=mean(self.copy_seconds, other.copy_seconds),
            gemm=max(self.gemm, other.gemm),
        )


@dataclass(frozen=True)
class LayerTable:
    """All layers of a model on one machine.

    Attributes:
        layers: By geometry, in the order of the model.
        memory_rate: Bytes/s of a copy that no cache holds.
        launch_seconds: Time of a kernel that only starts its threads.
    """

    layers: tuple[LayerFigures, ...]
    memory_rate: float
    launch_seconds: float

    @property
    def peak(self) -> float:
        """Best FLOP/s of a product of matrices in the L2 cache, over the whole run."""
        return max(layer.gemm for layer in self.layers)

    def share(self, layer: LayerFigures) -> float:
        """Return useful rate over peak."""
        return layer.rate / self.peak

    def weighted_share(self, layers: Sequence[LayerFigures]) -> float:
        """Return the share of peak weighted by time: all useful FLOPs over what the peak does in all their time."""
        flops = sum(layer.flops * layer.count for layer in layers)
        return flops / (self.peak * sum(layer.seconds * layer.count for layer in layers))

    @property
    def masked(self) -> tuple[LayerFigures, ...]:
        """The layers with a mask."""
        return tuple(layer for layer in self.layers if layer.masked)

    def worst(self, count: int = 5) -> list[LayerFigures]:
        """Return the masked layers with the least share of peak."""
        return sorted(self.masked, key=self.share)[:count]

    def parts(self, layer: LayerFigures) -> dict[str, float]:
        """Return what a layer's time goes into as shares of it: they overlap, so they need not add up to 1."""
        return {
            "useful multiply-adds at the peak": self.share(layer),
            "wasted multiply-adds at the peak": (layer.computed_flops - layer.flops) / self.peak / layer.seconds,
            "a copy of as many bytes": layer.copy_seconds / layer.seconds,
            "starting the threads": self.launch_seconds / layer.seconds,
        }

    def explain(self, layer: LayerFigures) -> str:
        """Say in a sentence what limits a layer."""
        parts, copy_rate = self.parts(layer), layer.size_bytes / layer.copy_seconds
        ridge = self.peak / copy_rate
        side = "below" if layer.intensity < ridge else "above"
        listed = ", ".join(f"{name} {share:.0%}" for name, share in parts.items())
        rest = 1 - sum(parts.values())
        ends = f"{rest:.0%} is none of these" if rest > 0 else "they overlap"
        return (
            f"{layer.intensity:.1f} FLOP a byte, {side} the ridge of {ridge:.1f} (a copy of as many bytes, "
            f"{layer.size_bytes / 1e6:.2f} MB, runs at {copy_rate / 1e9:.0f} GB/s). Of its time: {listed}; {ends}"
        )

    def to_dict(self) -> dict[str, object]:
        """Return all figures, the derived ones too, as JSON-able data; times in seconds."""
        rows = [
            {**asdict(layer), "rate": layer.rate, "share": self.share(layer), "intensity": layer.intensity}
            for layer in self.layers
        ]
        return {
            "peak": self.peak,
            "memory_rate": self.memory_rate,
            "launch_seconds": self.launch_seconds,
            "weighted_share": self.weighted_share(self.masked),
            "weighted_share_of_all": self.weighted_share(self.layers),
            "worst": {layer.geometry: self.explain(layer) for layer in self.worst()},
            "layers": rows,
        }
