"""BERT's and Llama's blocks, with the arithmetic of the originals and small sizes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY = 50


class BertBlock(nn.Module):
    """Post-norm encoder block: attention with biases, then gelu (Devlin et al., arXiv 1810.04805)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)
        self.intermediate, self.output = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block, [N, tokens, width]."""
        batch, tokens, _ = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = self.norm1(self.dense(y) + x)
        found: torch.Tensor = self.norm2(self.output(F.gelu(self.intermediate(x))) + x)
        return found


class Bert(nn.Module):
    """Embeddings, two blocks, a pooler on the first token."""

    def __init__(self, width: int = 48, heads: int = 4, hidden: int = 96, positions: int = 16) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.Sequential(*(BertBlock(width, heads, hidden) for _ in range(2)))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, 7)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return classes and the last hidden states."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.blocks(self.norm(self.words(tokens) + self.positions(places)))
        return self.head(torch.tanh(self.pooler(x[:, 0]))), x


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Apply rotary position embedding, [N, heads, tokens, dim]; pairs are (j, j + dim / 2)."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=x.dtype, device=x.device) / half)
    angles = torch.outer(torch.arange(x.shape[-2], dtype=x.dtype, device=x.device), frequencies).repeat(1, 2)
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * angles.cos() + turned * angles.sin()


class LlamaBlock(nn.Module):
    """Pre-norm decoder block: RMS norm, grouped queries, rotary positions, gated MLP (arXiv 2302.13971)."""

    def __init__(self, width: int, heads: int, key_heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.key_heads, dim = heads, key_heads, width // heads
        self.q_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(width, key_heads * dim, bias=False) for _ in range(2))
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block, [N, tokens, width]."""
        x = x + self.attend(self.norm1(x))
        y = self.norm2(x)
        z: torch.Tensor = x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))
        return z

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Attend to earlier tokens; each key head serves several query heads."""
        batch, tokens, _ = x.shape
        q = rotate(self.q_proj(x).view(batch, tokens, self.heads, -1).transpose(1, 2))
        k = rotate(self.k_proj(x).view(batch, tokens, self.key_heads, -1).transpose(1, 2))
        v = self.v_proj(x).view(batch, tokens, self.key_heads, -1).transpose(1, 2)
        copies = self.heads // self.key_heads
        k, v = (
            y[:, :, None].expand(-1, -1, copies, -1, -1).reshape(batch, self.heads, tokens, -1)  # as transformers does
            for y in (k, v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        found: torch.Tensor = self.o_proj(y)
        return found


class Llama(nn.Module):
    """Embedding, two blocks, a norm, the output layer."""

    def __init__(self, width: int = 48, heads: int = 6, key_heads: int = 2, hidden: int = 80) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(*(LlamaBlock(width, heads, key_heads, hidden) for _ in range(2)))
        self.norm, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return scores of the next token, [N, tokens, VOCABULARY]."""
        scores: torch.Tensor = self.head(self.norm(self.blocks(self.words(tokens))))
        return scores


class LanguageModel(nn.Module):
    """Embedding, two LSTM layers, a linear layer: the word language model of PyTorch's examples."""

    def __init__(self, width: int = 24, hidden: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, hidden, num_layers=2, batch_first=True)
        self.middle, self.head = nn.Linear(hidden, 40), nn.Linear(40, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return scores of the next token and the last state."""
        y, (h, c) = self.lstm(self.words(tokens))
        return self.head(self.middle(y).relu()), h, c
