"""Exercises: the reference passes, every planted bug is caught by name, the notebooks' solutions are right."""

import inspect
import re

import nbformat
import numpy as np
import pytest
import torch

from tests.test_notebooks import NOTEBOOKS
from utils import exercises

ALL = [(name, message) for name, task in exercises.EXERCISES.items() for message in task.mistakes]


def student(name, code):
    """A function written as a student would write it."""
    scope = {"torch": torch, "np": np, "re": re}
    exec(code, scope)
    return scope[name]


@pytest.mark.parametrize("name", exercises.EXERCISES)
def test_the_reference_passes_and_there_are_four_mistakes(name):
    task = exercises.EXERCISES[name]
    assert exercises.check(task.reference).passed
    assert len(task.mistakes) >= 4


@pytest.mark.parametrize(("name", "message"), ALL)
def test_each_mistake_is_named(name, message):
    def copy(*arguments):
        return exercises.EXERCISES[name].mistakes[message](*arguments)

    copy.__name__ = name
    result = exercises.check(copy)
    assert not result.passed
    assert result.message == message


# Bugs planted by hand, in other words than the mistakes above: (exercise, code, what the message must say).
PLANTED = [
    ("fit_power_law", "a, b = np.polyfit(np.log10(n), np.log10(loss), 1)\n    return a, 10 ** (-b / a)", "sign"),
    ("fit_power_law", "a, b = np.polyfit(np.log10(n), np.log10(loss), 1)\n    return -a, 10 ** b", "n = 1"),
    ("fit_power_law", "a, b = np.polyfit(np.log10(n), np.log10(loss), 1)\n    return -a, np.log(10) * -b / a", "still a logarithm"),
    ("fit_power_law", "x = np.log(n); y = loss; a = np.cov(x, y)[0, 1] / x.var(ddof=1)\n    return -a, np.exp(x.mean() - y.mean() / a)", "loss is logarithmic too"),
    ("count_parameters", "c = config; d = c.hidden_size; return c.vocab_size * d * (2 - c.tie_word_embeddings) + c.num_hidden_layers * (4 * d * d + 3 * d * c.intermediate_size + 2 * d) + d", "fewer heads"),
    ("count_parameters", "c = config; d = c.hidden_size; kv = d * c.num_key_value_heads // c.num_attention_heads\n    return 2 * c.vocab_size * d + c.num_hidden_layers * (2 * d * d + 2 * d * kv + 3 * d * c.intermediate_size + 2 * d) + d", "twice"),
    ("count_parameters", "c = config; d = c.hidden_size; kv = d * c.num_key_value_heads // c.num_attention_heads\n    return c.vocab_size * d * (2 - c.tie_word_embeddings) + c.num_hidden_layers * (2 * d * d + 2 * d * kv + 2 * d * c.intermediate_size + 2 * d) + d", "three"),
    ("count_parameters", "c = config; d = c.hidden_size; kv = d * c.num_key_value_heads // c.num_attention_heads\n    return c.vocab_size * d * (2 - c.tie_word_embeddings) + c.num_hidden_layers * (2 * d * d + 2 * d * kv + 3 * d * c.intermediate_size + 2 * d)", "last layer"),
    ("training_compute", "f = parameters * tokens * (1 + 1); return f, f / flop_per_second / 31_536_000", "forward pass only"),
    ("training_compute", "f = 2 * parameters * 3 * tokens; return f, f / flop_per_second / 3600", "hours"),
    ("training_compute", "f = 2 * parameters * 3 * tokens; return f, f / flop_per_second", "seconds"),
    ("training_compute", "f = 4 * parameters * tokens; return f, f / flop_per_second / 31_536_000", "forget the forward"),
    ("temperature", "return torch.exp(logits * temperature) / torch.exp(logits * temperature).sum(-1, keepdim=True)", "divide"),
    ("temperature", "return torch.softmax(logits / temperature, dim=0)", "batch"),
    ("temperature", "return logits.div(temperature)", "softmax"),
    ("temperature", "p = logits.softmax(-1); return p / temperature", "sums to 1"),
    ("temperature", "return logits.exp() / logits.exp().sum(-1, keepdim=True)", "no effect"),
    ("top_k", "kth = logits.sort(-1).values[:, k - 1:k]\n    return torch.where(logits <= kth, logits, -torch.inf)", "least likely"),
    ("top_k", "kth = logits.sort(-1, descending=True).values[:, k:k + 1]\n    return torch.where(logits < kth, -torch.inf, logits)", "too many"),
    ("top_k", "kth = logits.sort(-1, descending=True).values[:, k - 1:k]\n    return torch.where(logits > kth, logits, -torch.inf)", "too few"),
    ("top_k", "kth = logits.topk(k).values.min(-1, keepdim=True).values\n    return logits * (logits >= kth)", "-inf"),
    ("top_k", "kth = logits.view(-1).sort(descending=True).values[k - 1]\n    return torch.where(logits >= kth, logits, -torch.inf)", "own"),
    ("nucleus", "s, o = torch.sort(logits.softmax(-1), descending=True)\n    drop = (s.cumsum(-1) > p).gather(-1, o.argsort(-1))\n    return logits.masked_fill(drop, -torch.inf)", "stays"),
    ("nucleus", "s, o = torch.sort(logits.softmax(-1), descending=True)\n    keep = (s.cumsum(-1) - s >= p).gather(-1, o.argsort(-1))\n    return torch.where(keep, logits, -torch.inf)", "turn"),
    ("nucleus", "s = torch.sort(logits.softmax(-1), descending=True)[0]\n    return torch.where(s.cumsum(-1) - s < p, logits, -torch.inf)", "sorted order"),
    ("nucleus", "return torch.where(logits.softmax(-1) >= p, logits, -torch.inf)", "running sum"),
    ("beam_step", "v, i = log_probs.reshape(-1).topk(scores.numel())\n    V = log_probs.size(1)\n    return v, i // V, i % V", "scores"),
    ("beam_step", "t = (scores.unsqueeze(1) + log_probs)\n    v, i = t.max(1)\n    return v, torch.arange(t.size(0)), i", "compete"),
    ("beam_step", "t = (scores.unsqueeze(1) + log_probs)\n    v, i = t.reshape(-1).topk(t.size(0))\n    return v, i.remainder(t.size(1)), i // t.size(1)", "swapped"),
    ("beam_step", "t = scores.unsqueeze(1) * log_probs\n    v, i = t.reshape(-1).topk(t.size(0))\n    return v, i // t.size(1), i % t.size(1)", "add"),
    ("template", "return item['premise'] + '\\nCan we conclude that \"' + item['hypothesis'] + '\"?\\nOptions: ' + ', '.join(item['options']) + '\\nAnswer: ' + item['answer']", "gives the answer away"),
    ("template", "return '%s\\nCan we conclude that \"%s\"?\\nOptions: %s\\nAnswer: ' % (item['premise'], item['hypothesis'], ', '.join(item['options']))", "space"),
    ("template", "return '%s\\nCan we conclude that \"%s\"?\\nAnswer:' % (item['premise'], item['hypothesis'])", "missing"),
    ("template", "o = [item['answer']] + [x for x in item['options'] if x != item['answer']]\n    return '%s\\nCan we conclude that \"%s\"?\\nOptions: %s\\nAnswer:' % (item['premise'], item['hypothesis'], ', '.join(o))", "order"),
    ("template", "return '%s\\nCan we conclude that \"%s\"?\\nOptions: %s\\nAnswer:' % (item['hypothesis'], item['premise'], ', '.join(item['options']))", "swapped"),
    ("mask_prompt", "out = ids.clone()\n    for r, n in enumerate(prompt.tolist()): out[r, :n] = -100\n    return out", "padding"),
    ("mask_prompt", "out = ids.clone()\n    for r, n in enumerate(length.tolist()): out[r, n:] = -100\n    return out", "instructions"),
    ("mask_prompt", "p = torch.arange(ids.size(1))[None]\n    return torch.where((p > prompt[:, None]) & (p < length[:, None]), ids, -100)", ">="),
    ("mask_prompt", "p = torch.arange(ids.size(1))[None]\n    return torch.where((p >= prompt[:, None]) & (p < length[:, None] - 1), ids, -100)", "never stops"),
    ("mask_prompt", "p = torch.arange(ids.size(1))[None]\n    return ids * ((p >= prompt[:, None]) & (p < length[:, None]))", "-100"),
    ("mask_prompt", "p = torch.arange(ids.size(1))[None]\n    l = torch.where((p >= prompt[:, None]) & (p < length[:, None]), ids, -100)\n    return torch.cat([l[:, 1:], l[:, :1]], 1)", "shift"),
    ("option_scores", "lp = torch.log_softmax(logits, -1)\n    return torch.stack([sum(lp[o, t, ids[o, t]] for t in range(prompt, int(length[o]))) for o in range(len(ids))])", "t - 1"),
    ("option_scores", "lp = torch.log_softmax(logits, -1)\n    return torch.stack([sum(lp[o, t - 1, ids[o, t]] for t in range(prompt, ids.size(1))) for o in range(len(ids))])", "padding"),
    ("option_scores", "lp = torch.log_softmax(logits, -1)\n    return torch.stack([sum(lp[o, t - 1, ids[o, t]] for t in range(1, int(length[o]))) for o in range(len(ids))])", "prompt counts"),
    ("option_scores", "return torch.stack([sum(logits[o, t - 1, ids[o, t]] for t in range(prompt, int(length[o]))) for o in range(len(ids))])", "log_softmax"),
    ("option_scores", "lp = torch.log_softmax(logits, -1)\n    return torch.stack([sum(lp[o, t - 1, ids[o, t]] for t in range(prompt, int(length[o]))) / (length[o] - prompt) for o in range(len(ids))])", "mean"),
    ("causal_mask", "n = real.size(1); return (torch.arange(n)[None] <= torch.arange(n)[:, None] + 1) & real.unsqueeze(1)", "position 1 see position 2"),
    ("causal_mask", "n = real.size(1); return (torch.arange(n)[None] < torch.arange(n)[:, None]) & real.unsqueeze(1)", "does not see itself"),
    ("causal_mask", "n = real.size(1); return (torch.arange(n)[:, None] <= torch.arange(n)[None]) & real.unsqueeze(1)", "upside down"),
    ("causal_mask", "n = real.size(1); return (torch.arange(n)[None] <= torch.arange(n)[:, None]).repeat(len(real), 1, 1)", "padding can be seen"),
    ("causal_mask", "n = real.size(1); return (torch.arange(n)[None] <= torch.arange(n)[:, None]) & real.unsqueeze(2)", "for the rows"),
    ("causal_mask", "return torch.stack([real] * real.size(1), 1)", "whole text"),
    ("causal_mask", "n = real.size(1); return (torch.arange(n)[None] > torch.arange(n)[:, None]) | ~real.unsqueeze(1)", "swapped"),
    ("attention", "s = torch.einsum('bhid,bhjd->bhij', q, k); return torch.where(allowed[:, None], s, -1e9).softmax(-1) @ v", "square root"),
    ("attention", "s = torch.einsum('bhid,bhjd->bhij', q, k) / q.size(-1); return torch.where(allowed[:, None], s, -1e9).softmax(-1) @ v", "its square root"),
    ("attention", "s = torch.einsum('bhid,bhjd->bhij', q, k) / q.size(2) ** 0.5; return torch.where(allowed[:, None], s, -1e9).softmax(-1) @ v", "number of tokens"),
    ("attention", "s = torch.einsum('bhid,bhjd->bhij', q, k) / q.size(-1) ** 0.5; return torch.where(allowed[:, None], s, -1e9).softmax(2) @ v", "wrong axis"),
    ("attention", "s = torch.einsum('bhid,bhjd->bhij', q, k) / q.size(-1) ** 0.5; return torch.where(allowed[:, None], s.softmax(-1), 0.0) @ v", "after softmax"),
    ("attention", "s = torch.einsum('bhid,bhjd->bhij', q, k) / q.size(-1) ** 0.5; return (s * allowed[:, None]).softmax(-1) @ v", "e to the 0"),
    ("attention", "return torch.nn.functional.scaled_dot_product_attention(q, k, v)", "no effect"),
    ("attention", "s = torch.einsum('bhid,bhjd->bhij', q, k) / q.size(-1) ** 0.5; return s.masked_fill(allowed[:, None], -torch.inf).softmax(-1) @ v", "wrong way round"),
    ("attention", "s = torch.einsum('bhid,bhjd->bhij', q, k) / q.size(-1) ** 0.5; return torch.where(allowed[:, None], s, -1e9).softmax(-1)", "mixed"),
    ("next_token_loss", "return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())", "t + 1"),
    ("next_token_loss", "return torch.nn.functional.cross_entropy(logits[:, 1:].flatten(0, 1), ids[:, :-1].flatten())", "wrong way"),
    ("next_token_loss", "return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.roll(ids, -1, 1).flatten())", "first token"),
    ("next_token_loss", "return -torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())", "sign"),
    ("next_token_loss", "return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction='sum')", "mean"),
    ("next_token_loss", "return torch.nn.functional.nll_loss(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())", "softmax is missing"),
    ("next_token_loss", "return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).softmax(-1), ids[:, 1:].flatten())", "twice"),
    ("next_token_loss", "return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) / np.log(2)", "bits"),
    ("bradley_terry", "return -torch.log(torch.sigmoid(rejected - chosen)).clamp(min=-1e9).mean() if rejected.abs().max() < 100 else torch.nn.functional.softplus(chosen - rejected).mean()", "swapped"),
    ("bradley_terry", "d = chosen - rejected\n    return -torch.nn.functional.softplus(-d).mean()", "sign"),
    ("bradley_terry", "d = chosen - rejected\n    return torch.nn.functional.softplus(-d).sum()", "sum over"),
    ("bradley_terry", "return torch.log(1 + torch.exp(rejected - chosen)).mean()", "logsigmoid"),
    ("bradley_terry", "return torch.nn.functional.softplus(rejected - chosen)", "each pair"),
    ("bradley_terry", "return torch.mean(1 / (1 + torch.exp(rejected - chosen)))", "probability"),
    ("bradley_terry", "f = torch.nn.functional.softplus\n    return (f(-chosen) + f(rejected)).mean()", "by itself"),
    ("pairs_from_ranking", "return [(ranking[i], ranking[i + 1]) for i in range(len(ranking) - 1)]", "neighbours"),
    ("pairs_from_ranking", "import itertools\n    return [(b, a) for a, b in itertools.combinations(ranking, 2)]", "turned around"),
    ("pairs_from_ranking", "import itertools\n    return list(itertools.combinations(range(len(ranking)), 2))", "places"),
    ("pairs_from_ranking", "import itertools\n    return list(itertools.permutations(ranking, 2))", "Both orders"),
    ("pairs_from_ranking", "import itertools\n    return list(itertools.combinations_with_replacement(ranking, 2))", "itself"),
    ("pairs_from_ranking", "best, *rest = ranking\n    return [(best, r) for r in rest]", "best with the others"),
    ("agreement", "s = n = 0\n    for r in votes.tolist():\n        for i in range(len(r)):\n            for j in range(i):\n                s += r[i] == r[j]; n += 1\n    return s / n", "not asked"),
    ("agreement", "s = n = 0\n    for r in votes.tolist():\n        r = [x for x in r if x]\n        for a in r:\n            for b in r:\n                s += a == b; n += 1\n    return s / n", "himself"),
    ("agreement", "s = n = 0\n    for r in votes.tolist():\n        a, b = r[:2]\n        if a and b: s += a == b; n += 1\n    return s / n", "first two"),
    ("agreement", "out = []\n    for r in votes.tolist():\n        r = [x for x in r if x]\n        p = [a == b for i, a in enumerate(r) for b in r[:i]]\n        out += [sum(p) / len(p)] if p else []\n    return sum(out) / len(out)", "within each"),
    ("agreement", "s = n = 0\n    for r in votes.tolist():\n        r = [x for x in r if x]\n        for i, a in enumerate(r):\n            for b in r[:i]: s += a != b; n += 1\n    return s / n", "disagrees"),
    ("shaped_rewards", "r = beta * (logprobs - reference_logprobs) * mask\n    r[range(len(r)), mask.sum(1).long() - 1] += scores\n    return r", "sign"),
    ("shaped_rewards", "r = -beta * (logprobs - reference_logprobs) * mask\n    r[:, -1] += scores\n    return r", "last column"),
    ("shaped_rewards", "r = beta * (reference_logprobs - logprobs)\n    r[range(len(r)), mask.sum(1).long() - 1] += scores\n    return r", "padding has rewards"),
    ("shaped_rewards", "return (scores.unsqueeze(1) + beta * (reference_logprobs - logprobs)) * mask", "every token"),
    ("gae", "out = torch.zeros_like(values); a = 0\n    for t in reversed(range(values.size(1))):\n        n = values[:, t + 1] if t + 1 < values.size(1) else 0\n        a = (rewards[:, t] + gamma * n - values[:, t] + gamma * lam * a) * mask[:, t]\n        out[:, t] = a\n    return out", "padding"),
    ("gae", "v = values * mask; out = torch.zeros_like(v); a = 0\n    for t in reversed(range(v.size(1))):\n        n = v[:, t + 1] if t + 1 < v.size(1) else 0\n        a = (rewards[:, t] + gamma * n - v[:, t] + lam * a) * mask[:, t]\n        out[:, t] = a\n    return out", "gamma * lam"),
    ("gae", "v = values * mask; out = torch.zeros_like(v); a = 0\n    for t in reversed(range(v.size(1))):\n        a = (rewards[:, t] - v[:, t] + gamma * lam * a) * mask[:, t]\n        out[:, t] = a\n    return out", "next token is missing"),
    ("gae", "v = values * mask; n = torch.nn.functional.pad(v[:, 1:], (0, 1)); return (rewards + gamma * n - v) * mask", "stop at delta"),
    ("clipped_loss", "r = torch.exp(logprobs - old_logprobs); x = torch.minimum(r * advantages, r.clip(1 - clip, 1 + clip) * advantages)\n    return x[mask.bool()].mean()", "minus"),
    ("clipped_loss", "r = torch.exp(logprobs - old_logprobs); x = torch.maximum(r * advantages, r.clip(1 - clip, 1 + clip) * advantages)\n    return -x[mask.bool()].mean()", "pessimistic"),
    ("clipped_loss", "r = torch.exp(old_logprobs - logprobs); x = torch.minimum(r * advantages, r.clip(1 - clip, 1 + clip) * advantages)\n    return -x[mask.bool()].mean()", "upside down"),
    ("clipped_loss", "r = torch.exp(logprobs - old_logprobs); return -(r * advantages)[mask.bool()].mean()", "Nothing is clipped"),
    ("clipped_loss", "r = torch.exp(logprobs - old_logprobs); x = torch.minimum(r * advantages, r.clip(1 - clip, 1 + clip) * advantages)\n    return -x.mean()", "in the mean"),
    ("dpo_loss", "x = beta * (policy_rejected - reference_rejected - policy_chosen + reference_chosen)\n    return torch.log(1 + torch.exp(-x)).mean()", "swapped"),
    ("dpo_loss", "x = beta * (policy_chosen - policy_rejected)\n    return torch.log(1 + torch.exp(-x)).mean()", "reference is missing"),
    ("dpo_loss", "x = policy_chosen - reference_chosen - policy_rejected + reference_rejected\n    return torch.log(1 + torch.exp(-x)).mean()", "beta"),
    ("dpo_loss", "x = beta * (policy_chosen - reference_chosen - policy_rejected + reference_rejected)\n    return torch.log(1 + torch.exp(-x)).sum()", "mean"),
    ("group_advantages", "return (rewards - rewards.mean()) / (rewards.std() + 1e-4)", "one prompt"),
    ("group_advantages", "g = rewards.reshape(-1, size); return ((g - g.mean(0)) / (g.std(0) + 1e-4)).reshape(-1)", "dim 0"),
    ("group_advantages", "g = rewards.reshape(-1, size); return (g - g.mean(1)[:, None]).reshape(-1)", "without scaling"),
    ("group_advantages", "g = rewards.reshape(-1, size); return (g / (g.std(1)[:, None] + 1e-4)).reshape(-1)", "without centring"),
    ("rouge_1", "a, b = prediction.lower().split(), reference.lower().split()\n    return sum(min(a.count(w), b.count(w)) for w in set(a)) / len(a)", "precision"),
    ("rouge_1", "a, b = prediction.lower().split(), reference.lower().split()\n    return sum(min(a.count(w), b.count(w)) for w in set(a)) / len(b)", "recall"),
    ("rouge_1", "a, b = set(prediction.lower().split()), set(reference.lower().split())\n    return 2 * len(a & b) / (len(a) + len(b))", "different words"),
    ("rouge_1", "import collections\n    a, b = collections.Counter(prediction.split()), collections.Counter(reference.split())\n    return 2 * (a & b).total() / (a.total() + b.total())", "Capital"),
    ("rouge_1", "a, b = prediction.lower().split(), reference.lower().split()\n    p, r = sum(w in b for w in a) / len(a), sum(w in a for w in b) / len(b)\n    return 2 * p * r / (p + r) if p + r else 0.0", "too often"),
    ("bootstrap_interval", "return tuple(np.quantile(values, [0.5 - level / 2, 0.5 + level / 2]).tolist())", "values themselves"),
    ("bootstrap_interval", "return tuple(np.quantile(np.mean(values[draws], axis=0), [0.5 - level / 2, 0.5 + level / 2]).tolist())", "axis 0"),
    ("bootstrap_interval", "return tuple(np.quantile(np.mean(values[draws], axis=1), [1 - level, level]).tolist())", "too wide"),
    ("bootstrap_interval", "m = sorted(values[d].mean() for d in draws)\n    return tuple(np.quantile(m, [0.5 + level / 2, 0.5 - level / 2]).tolist())", "swapped"),
    ("bradley_terry_fit", "import utils.evaluation as e\n    return torch.tensor(e.strengths(wins.T.numpy()))", "wrong way"),
    ("bradley_terry_fit", "import utils.evaluation as e\n    t = torch.tensor(e.strengths(wins.numpy()))\n    return t - t[0]", "mean must be 0"),
    ("bradley_terry_fit", "import utils.evaluation as e\n    return torch.tensor(e.strengths(wins.numpy())).exp()", "logarithm"),
    ("bradley_terry_fit", "import utils.evaluation as e\n    return torch.tensor(e.strengths(wins.numpy())) * e.ELO", "Elo"),
    ("bradley_terry_fit", "x = torch.log(wins.sum(1)) - torch.log(wins.sum(0))\n    return x - x.mean()", "log-odds"),
    ("parse_answer", "m = re.findall(r'-?[\\d,]*\\d', reply)\n    return m[-1].replace(',', '') if m else 'none'", "may go on writing"),
    ("parse_answer", "m = re.search(r'-?[\\d,]*\\d', reply)\n    return m[0].replace(',', '') if m else 'none'", "of the steps"),
    ("parse_answer", "m = re.search(r'answer is\\D*?(-?[\\d,]*\\d)', reply)\n    m = [m[1]] if m else re.findall(r'-?[\\d,]*\\d', reply)\n    return m[-1].replace(',', '') if m else 'none'", "rpartition"),
    ("parse_answer", "m = re.findall(r'answer is\\D*?(-?[\\d,]*\\d)', reply)\n    return m[-1].replace(',', '') if m else 'none'", "give up"),
    ("parse_answer", "m = re.findall(r'answer is\\D*?(-?[\\d,]*\\d)', reply) or re.findall(r'-?[\\d,]*\\d', reply)\n    return m[-1] if m else 'none'", "same answer"),
    ("parse_answer", "m = re.findall(r'answer is\\D*?(\\d[\\d,]*)', reply) or re.findall(r'\\d[\\d,]*', reply)\n    return m[-1].replace(',', '') if m else 'none'", "sign"),
    ("majority_vote", "from collections import Counter\n    return Counter(answers).most_common(1)[0][0]", "vote too"),
    ("majority_vote", "from collections import Counter\n    c = Counter(a for a in answers if a != 'none')\n    return c.most_common(1)[0][1] if c else 0", "number of votes"),
    ("majority_vote", "return max(sorted(set(answers) - {'none'}, key=float), key=float, default='none')", "largest"),
    ("majority_vote", "best, top = 'none', 0\n    for a in answers:\n        n = answers.count(a)\n        if a != 'none' and n >= top: best, top = a, n\n    return best", "the first one counts"),
    ("few_shot_prompt", "s = instruction + '\\n\\n'\n    for q, a in examples: s += 'Question: ' + q + '\\nAnswer: ' + a + '\\n\\n'\n    return s + 'Question: ' + question + '\\nAnswer: '", "ends in a space"),
    ("few_shot_prompt", "s = instruction + '\\n\\n'\n    for q, a in examples: s += 'Question: ' + q + '\\nAnswer:\\n\\n'\n    return s + 'Question: ' + question + '\\nAnswer:'", "no answers"),
    ("few_shot_prompt", "s = ''\n    for q, a in examples: s += 'Question: ' + q + '\\nAnswer: ' + a + '\\n\\n'\n    return s + 'Question: ' + question + '\\nAnswer:'", "instruction is missing"),
    ("few_shot_prompt", "s = instruction + '\\n'\n    for q, a in examples: s += 'Question: ' + q + '\\nAnswer: ' + a + '\\n'\n    return s + 'Question: ' + question + '\\nAnswer:'", "empty line"),
    ("few_shot_prompt", "s = instruction + '\\n\\n'\n    for q, a in examples: s += 'Question: ' + q + '\\nAnswer: ' + a + '\\n\\n'\n    return s + question", "does not look like"),
    ("retrieve", "return torch.argsort(torch.einsum('nd,d->n', passages, query), descending=True)[:k]", "dot product"),
    ("retrieve", "p = passages / passages.norm(dim=1, keepdim=True); return torch.argsort(p @ query)[:k]", "turned around"),
    ("retrieve", "p = passages / passages.norm(dim=1, keepdim=True); return (p @ query / query.norm()).sort(descending=True).values[:k]", "similarities"),
    ("retrieve", "p = passages / passages.norm(dim=0, keepdim=True); return torch.argsort(-(p @ query))[:k]", "wrong axis"),
    ("watermark_z", "n = green.numel(); return float((green.sum() - gamma * n) / (gamma * n - gamma**2 * n))", "variance"),
    ("watermark_z", "n = green.numel(); return float((green.sum() - 0.5 * n) / (gamma * n - gamma**2 * n) ** 0.5)", "half"),
    ("watermark_z", "n = green.numel(); return float((green.sum() / n - gamma) / (gamma * n - gamma**2 * n) ** 0.5)", "share"),
    ("watermark_z", "n = green.numel(); return float((green.sum() - gamma * n) / (gamma - gamma**2) ** 0.5)", "number of tokens"),
]  # fmt: skip
ARGUMENTS = {"beam_step": "scores, log_probs", "temperature": "logits, temperature", "top_k": "logits, k"}
ARGUMENTS |= {"nucleus": "logits, p", "template": "item", "mask_prompt": "ids, prompt, length"}
ARGUMENTS |= {"option_scores": "logits, ids, prompt, length"}


@pytest.mark.parametrize(("name", "body", "word"), PLANTED)
def test_planted_bugs_are_caught_by_name(name, body, word):
    arguments = ", ".join(inspect.signature(exercises.EXERCISES[name].reference).parameters)
    result = exercises.check(student(name, f"def {name}({arguments}):\n    {body}"))
    assert not result.passed
    assert word in result.message


def test_what_is_not_attempted_stops_nothing():
    for body in ("...", "return ...", "raise NotImplementedError"):
        result = exercises.check(student("top_k", f"def top_k(logits, k):\n    {body}"))
        assert not result.passed
        assert "not attempted" in result.message
    assert "ZeroDivisionError" in exercises.check(student("top_k", "def top_k(logits, k):\n    1 / 0")).message
    assert "not right yet" in exercises.check(student("top_k", "def top_k(logits, k):\n    return logits * 3")).message


def test_an_unknown_exercise_is_named():
    with pytest.raises(ValueError, match="no exercise 'softmax'"):
        exercises.check(student("softmax", "def softmax(x):\n    return x"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_solutions_in_the_notebooks_pass(path):
    cells = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}
    stubs = [id for id in cells if id.startswith("stub-")]
    for stub in stubs:
        code = re.search(r"```python\n(.*?)```", cells[stub.replace("stub", "solution")], re.S)[1]
        name = re.search(r"def (\w+)", code)[1]
        assert exercises.check(student(name, code)).passed, stub
        assert "not attempted" in exercises.check(student(name, cells[stub])).message
