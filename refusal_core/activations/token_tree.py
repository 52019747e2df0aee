"""Phrases as a prefix tree: what several begin with is run once, and every token's probability is looked up once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class TokenTree:
    """The tree of some phrases' beginnings; its root, node 0, is where they begin.

    Attributes:
        branches: the longest beginnings that have to be run; all others are beginnings of these.
        nodes: all beginnings in the order in which ``branches`` are laid out, the empty one first.
    """

    def __init__(self, phrases: Sequence[Sequence[int]]) -> None:
        """Build the tree.

        Args:
            phrases: token ids of each phrase; none is empty or begins with another.
        """
        beginnings = {tuple(phrase[:end]) for phrase in phrases for end in range(len(phrase))}
        self.nodes = sorted(beginnings | {()})
        self.branches = [
            list(node)
            for node in self.nodes
            if node and not any(other != node and other[: len(node)] == node for other in self.nodes)
        ]
        number = {node: place for place, node in enumerate(self.nodes)}
        steps = sorted({(number[tuple(phrase[:end])], phrase[end]) for phrase in phrases for end in range(len(phrase))})
        place = {step: index for index, step in enumerate(steps)}
        self._step_nodes, self._step_tokens = ([step[part] for step in steps] for part in (0, 1))
        self._phrase_steps = [
            [place[number[tuple(phrase[:end])], phrase[end]] for end in range(len(phrase))] for phrase in phrases
        ]

    def log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the log-odds that one of the phrases follows: ``log P - log(1 - P)``.

        ``P`` is the sum over phrases of the product of their tokens' probabilities, each given what comes before.

        Args:
            logits: ``(prompt, node, vocabulary)`` after each node.

        Returns:
            ``(prompt,)`` float64, natural logarithm.
        """
        if not self._phrase_steps:
            return torch.full((len(logits),), -math.inf, dtype=torch.float64)
        # A row at a time stays in a core's cache, which is five times faster than all at once.
        totals = torch.stack([row.float().logsumexp(dim=-1) for row in logits.flatten(0, 1)]).view(logits.shape[:2])
        chosen = logits[:, self._step_nodes, self._step_tokens].float()
        steps = (chosen - totals[:, self._step_nodes]).double()
        log_p = torch.stack([steps[:, own].sum(dim=1) for own in self._phrase_steps]).logsumexp(dim=0)
        log_p = log_p.clamp(max=-1e-12)
        return log_p - torch.log(-torch.expm1(log_p))

    def greedy(self, likeliest: list[int]) -> tuple[list[int], list[int]]:
        """Return the likeliest continuation as far as the tree goes, and the nodes on its way.

        Args:
            likeliest: the likeliest token after each node.

        Returns:
            Token ids, at least one, and the numbers of the nodes that all but the last of them lead to.
        """
        tokens, nodes = [likeliest[0]], list[int]()
        while tuple(tokens) in self.nodes:
            nodes.append(self.nodes.index(tuple(tokens)))
            tokens.append(likeliest[nodes[-1]])
        return tokens, nodes
