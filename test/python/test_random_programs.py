"""Random programs, compiled with -O0 and -O2, against the reference interpreter.

`programs.program(seed)` is the program of a seed; a failure names the seed and shows the source.
Groups of programs are one file each, compiled once a level, two groups at a time.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from checks import batch, check_output, kept, row, same_bits, selected_by_reference
from programs import Program, program

import kvpc

COUNT = 200
GROUP = 10
CHANNELS = 20  # more than a vector, and no whole vectors
HEADS = 3  # more than are in flight at once
LENGTHS = (600, 45)  # several tiles and segments, and less than one
# Scores may differ by this, relative to the largest of their row and head, or where the program
# itself magnifies rounding, by as much as inputs changed in their last bits change the reference's.
BOUND = 2e-5
NUDGE = 2.0**-22
MAGNIFIED = 16
QUICK = {"dtypes": "f32", "channels": 0}
SMALL = {"layer": 1, "layers": 3}


# What the random programs leave out, or met too seldom.
CORNERS = {
    # After heads kept different counts, `length` is each head's own.
    "ragged_length": """
press a() = uniform(8, [head, token]) |> chunk(20) |> topk(keep(6))
press b() = uniform(9, [head, token]) |> topk(drop(0.57))
press m() = compose(a(), b())
""",
    # The slots that a short last part lacks are not its neighbours'.
    "shift_along_parts": """
score m() = {
  let p = keys.partition(token, 16)
  let x = (p - p.shift(part, -1, fill = 3)).norm(channel) + p.shift(part, -2, fill = 2).mean(slot, channel)
  return (x + position.partition(token, 16).shift(part, -1, fill = 7)).join(fill = 0)
}
""",
    "joined_beside_channels": """
score m() = {
  let p = keys.partition(token, 5)
  return dot((p - p.mean(slot)).join(fill = 0), values, channel) + p.join(fill = 2).norm(channel)
}
""",
    "another_head_for_each_token": """
score m() = (keys.norm(channel) + values).at(channel, 2).at(head, position % heads)
  + (keys + values).at(head, heads - 1 - position % heads).sum(channel)
""",
    "wide_values_ranked_over_heads": """
score m() = keys.rank(head).mean(channel) + (keys * 2).cumsum(head).max(channel)
""",
    "a_slot_of_each_part": """
score m() = {
  let p = keys.norm(channel).partition(token, 16)
  return (p.at(slot, 13) + position.partition(token, 16)).join(fill = -1)
    + p.softmax(slot).at(slot, 40).max(part) + p.at(slot, p.index(part)).mean(part)
}
""",
    # Their rows are other entries, or another order of axes, than softmax sweeps over.
    "softmax_beside_other_entries": """
score m() = dot(keys, keys.partition(token, 4).mean(slot), channel).softmax(part).max(part)
  + attention(keys.rename(token -> token'), keys).mean(token')
  + keys.rename(head -> head').norm(channel).softmax(token).max(head')
""",
    "parts_meet_tokens": """
score m() = {
  let p = keys.partition(token, 16)
  return (p.mean(slot) - keys).abs().max(part).sum(channel) + (p * keys).max(part, slot).sum(channel)
    + (keys - keys.rename(token -> token')).abs().max(token').sum(channel)
}
""",
    # Rows of contractions with axes beside their channels, in any order.
    "rows_with_an_axis_of_their_own": """
score m() = {
  let ahead = 1 + index([ahead: 7]) / 7
  return dot(queries.last(3).mean(query) * ahead, keys, channel).max(ahead, group)
    + (dot(keys, queries.last(2) * ahead, channel) * ahead).sum(group, query, ahead)
    + dot(rotate(queries.unrotated.mean(query), seen + index([ahead: 3])), keys, channel).max(ahead).mean(group)
}
""",
    "rows_of_other_heads": """
score m() = dot(queries.last(3).rename(head -> head') * queries.last(3), keys, channel).max(group, head').mean(query)
  + (attention(queries * (1 + index([two: 2])), keys) * (1 + index([two: 2]))).mean(two, query, group) * 50
""",
    "rows_normalised": """
score m() = {
  let step = index(group) + 1
  let q = queries.last(3)
  return (dot(q.softmax(group), keys, channel) * step).max(group).mean(query)
    + (dot(q.normalize(query), keys, channel) * step).max(query).mean(group)
    + (dot(q.rank(group) / 2 + q.cumsum(query), keys, channel) * step).sum(group, query)
}
""",
    "dot_over_parts": """
score m() = {
  let k = keys.partition(token, 16)
  let v = values.partition(token, 16)
  let p = keys.norm(channel).partition(token, 16)
  return dot(k, v, part).max(slot).mean(channel) * position + cosine(k, v, part).min(slot).max(channel)
    + dot(k, v, slot).max(part).sum(channel)
    + dot(p.index(slot) * 1.0, p.mean(slot) + p.index(slot), slot).max(part)
}
""",
    "slots_of_a_short_row": """
score m() = {
  let p = keys.norm(channel).partition(token, 64)  # one of the rows has 45
  return (p.mean(part).mean(slot) + p.max(part).min(slot) + (p.mean(part) > 3).count(slot)
    + (p.mean(part).rank(slot) * p.max(part)).sum(slot)) * position + p.mean(part).softmax(slot).max(slot)
}
""",
    # No part lies in the range of a row of 45 tokens: nothing is read.
    "picked_of_no_parts": """
score m() = {
  let p = keys.norm(channel).partition(token, 64, whole = true).mean(slot)
  let q = values.partition(token, 7, from = 45).max(slot)
  return p.at(part, int(position / 7)) + p.sort(part -> place).at(place, 1) + q.at(part, 1).sum(channel)
    + keys.norm(channel).partition(token, 7, from = 50).at(slot, 2).at(part, 0)
    + dot(q, keys.mean(token), channel).at(part, position % 3)
}
""",
    "index_of_features": """
score m() = dot(values, output_weight, channel).sum(feature, where = index(feature) % 2 == 0).mean(group)
  + (dot(values, output_weight, channel) * index(feature)).max(feature, group) / extent(feature)
""",
    # Each slot is of the part with which it came.
    "parts_beside_parts": """
score m() = {
  let k = keys.partition(token, 16)
  let others = k.rename(part -> q).rename(slot -> s)
  let alike = dot(others, k, channel)
  return alike.max(s).sum(q).max(slot).max(part) * position + alike.min(slot, part).mean(s).max(q)
    + (alike > 0).count(s).sum(slot).max(q, part)
}
""",
    "heads_by_channel": "score m() = values.at(head, index(channel)).sum(channel)",
    "softmax_of_softmax": """
score m() = attention(queries.last(3), keys).softmax(token).at(query, 2).sum(group)
  + keys.norm(channel).softmax(token).softmax(token)
""",
    "contracted_and_ranked": """
score m() = attention(queries.last(3), keys).mean(query, group) * keys.rank(token).sum(channel)
  + (logits(queries.last(3), keys).max(query, group) * keys.softmax(token)).sum(channel)
""",
    "integers_along_an_axis": """
score m() = position.softmax(token) + position.normalize(token) * keys.norm(channel)
  + position.cumsum(token) / 1000 + keys.norm(channel).rank(token).softmax(token)
  + index(channel).softmax(channel).at(channel, 1) + position.avg_pool(token, 3) - position.max_pool(token, 3)
""",
    # What has no head is each head's own there.
    "protect_after_a_ragged_selection": """
press a() = mask(minimum(keys.norm(channel) / 4, uniform(1, [head, token])) > 0.2)
press m() = compose(a(), keys.norm(channel).protect(position >= 33) |> topk(keep(3)))
""",
    "share_of_the_output": """
score m() = dot(values, output_weight, channel).abs().sum(feature).mean(group)
""",
    "norm_of_the_output": "score m() = dot(values, output_weight, channel).norm(feature).max(group)",
    "both_at_once": """
score m() = {
  let x = dot(values, output_weight, channel)
  return (x / x.norm(feature)).max(feature, group) + (x > 0.1).count(feature, where = abs(x) < 2).mean(group)
}
""",
    "share_of_survivors": """
press a() = mask(uniform(1, [head, token]) > index(head) * 0.6)
press t() = (keys ** 2).mean(token) |> topk(keep(7))
press b() = dot(values, 0.5 * output_weight, channel).abs().mean(feature, group) |> topk(drop(0.4))
press m() = compose(a(), t(), b())
""",
    "shares_of_keys": """
score m() = dot(keys, output_weight.max(group), channel).min(feature) * output_weight.norm(channel, feature).mean(group)
""",
    "one_budget": """
press m() = keys.norm(channel) |> topk(drop(0.6), over = [head, token], at_least = 0.3)
""",
    # The other one keeps its best entry.
    "one_budget_that_one_head_wins": """
press m() = keys.norm(channel) + 100 * index(head) |> topk(keep(10), over = [head, token])
""",
    "one_budget_of_equals": """
press m() = minimum(keys.norm(channel), 3.5) |> topk(keep(20), over = [token, head])
""",
    "one_budget_of_protected": """
press m() =
  minimum(keys.norm(channel), 3.5).protect(position % 3 > 0) |> topk(keep(20), over = [head, token])
""",
    "one_budget_of_ragged_heads": """
press a() = mask(uniform(1, [head, token]) > index(head) * 0.6)
press b() = values.norm(channel).protect(position > 30) |> topk(drop(0.6), over = [head, token])
press m() = compose(a(), b())
""",
    "one_budget_of_survivors": """
press a() = position |> topk(keep(40))
press b() = keys.norm(channel) |> topk(drop(0.5), over = [head, token], at_least = 0.9)
press m() = compose(a(), b(), values.norm(channel) |> topk(drop(0.4)))
""",
    "one_budget_without_head": """
press a() = keys.norm(channel) |> topk(keep(30))
press m() = compose(a(), position |> topk(keep(8), over = [head, token]))
""",
    "counts_of_heads": """
press m() = keys.norm(channel) |> topk(keep((values.norm(channel) > 3.5).count(token)))
""",
    "counts_of_ragged_heads": """
press a() = mask(uniform(1, [head, token]) > index(head) * 0.6)
press m() = compose(a(), keys.norm(channel) |> topk(keep((values.norm(channel) > 3.5).count(token))))
""",
    "counts_together": """
press m() = keys.norm(channel) |> topk(keep((values.norm(channel) > 3.5).count(token)), over = [head, token])
""",
    "counts_without_head": """
press m() = position |> topk(keep((values.norm(channel).max(head) > 4.5).count(token)))
""",
    "counts_in_parts": """
press m() = keys.norm(channel) |> chunk(7) |> topk(keep((values.norm(channel) > 3.5).count(token)))
""",
    # The bound that a plan takes from the longest head is none of what a short one keeps.
    "a_count_that_falls_with_the_length": """
press m() = compose(mask(position < 30), keys.norm(channel) |> topk(keep(maximum(46 - length, 1))))
""",
    "ranks_of_all_layers": """
score m(w: float[layer, head]) = keys.norm(channel) * (w.rank(layer, head) + 3)
""",
    "reduced_over_layers": """
score m(w: float[layer, head, channel]) = {
  let x = abs(w).mean(channel)  # two heads of three layers
  let tied = float(round(x)).rank(layer, head)
  return keys.norm(channel) * (x.rank(layer) + 3) + x.max(layer) + w.sum(layer, channel) + tied
}
""",
    "std_of_one": "score m() = queries.last(1).sum(group).std(query)",
    "pool_in_a_short_part": (
        "score m() = position.partition(token, 20).avg_pool(slot, 3).join(fill = 0)"
    ),
    "highest_in_a_short_part": (
        "score m() = keys.norm(channel).partition(token, 20).max_pool(slot, 3).join(fill = 0)"
    ),
    "shift_in_a_short_part": (
        "score m() = keys.norm(channel).partition(token, 20).shift(slot, -1, fill = 2).join(fill = 0)"
    ),
    "rank_in_a_short_part": (
        "score m() = keys.norm(channel).partition(token, 7).rank(slot).join(fill = 9)"
    ),
    "running_sum_of_parts": (
        "score m() = keys.norm(channel).partition(token, 7).cumsum(part).join(fill = 9)"
    ),
    "rank_of_parts": "score m() = keys.norm(channel).partition(token, 7).rank(part).join(fill = 9)",
    "softmax_over_parts": (
        "score m() = keys.norm(channel).partition(token, 7).softmax(part).join(fill = 9)"
    ),
    "highest_of_parts": (
        "score m() = keys.norm(channel).partition(token, 7).max(part).max(slot) * position"
    ),
    "slots_under_another_name": """
score m() = keys.norm(channel).partition(token, 16).rename(slot -> slot').max(slot').mean(part) * position
""",
    "pool_along_parts": (
        "score m() = keys.norm(channel).partition(token, 7).avg_pool(part, 3).join(fill = 9)"
    ),
    "sorted_under_another_name": "score m() = keys.norm(channel).sort(token -> place).mean(place) * position",
    "tokens_under_another_name": "score m() = keys.norm(channel).rename(token -> place).max(place) * position",
    "dot_over_tokens": "score m() = dot(keys, values, token).mean(channel) * position",
    "rank_of_heads_and_tokens": (
        "score m() = minimum(keys.norm(channel), 3.5).rank(head, token) * 0.5"
    ),
    "rank_of_protected_heads_and_tokens": """
score m() = minimum(keys.norm(channel), 3.5).protect(position > 30).rank(token, head, where = position % 3 > 0) * 0.5
""",
    "rank_of_groups_and_tokens": """
score m() = logits(queries.last(1), keys).mean(query).rank(group, token).mean(group)
""",
    "rank_of_heads_and_parts": """
score m() = keys.norm(channel).partition(token, 16).mean(slot).rank(head, part) * 0.5
""",
    "softmax_chosen_by": "press m() = keys.norm(channel).softmax(token) |> topk(drop(0.4))",
    "softmax_ranked": "score m() = keys.norm(channel).softmax(token).rank(token)",
    "softmax_without_head": "score m() = (position / length).softmax(token)",
    "gelu_of_minus_infinity": "score m() = gelu(logits(queries.last(4), keys).mean(query).max(group))",
    "orders_along_two_axes": """
score m() = {
  let x = attention(queries.last(4), keys).mean(group)
  return (x.rank(token) * x.cumsum(token) + x.rank(query)).mean(query)
}
""",
    "ranks_of_slots_and_parts": """
score m() = {
  let x = keys.norm(channel).partition(token, 7)
  return (x.rank(slot) + x.rank(part) * 0.25 + x.cumsum(part)).join(fill = 9)
}
""",
    "order_of_an_order": """
score m() = {
  let x = keys.norm(channel).partition(token, 7).cumsum(part)
  return (x.rank(slot) * 0.5).join(fill = 9)
}
""",
    "protected_ranks_along_two_axes": """
score m() = {
  let x = keys.norm(channel).partition(token, 7)
  let p = x.protect(x > 3)
  return (p.rank(slot, where = x < 5) + p.rank(part, where = x < 5) * 0.25).join(fill = 9)
}
""",
    "rank_of_integers": "score m() = (position % 7).rank(token)",
    "running_sum_of_integers": "score m() = (position % 7).cumsum(token)",
    "integers_in_order": "score m() = (position % 7).sort(token -> place).mean(place) * position",
    "rank_of_head_numbers": "score m() = index(head).rank(head) * position",
    "softmax_of_infinity": "score m() = where(position == 3, inf, keys.norm(channel)).softmax(token)",
    "softmax_of_infinity_and_masked": """
score m() = where(position == 3, inf, where(position % 3 == 0, -inf, keys.norm(channel))).softmax(token)
""",
    # Heads meet: what others hold must be there.
    "pool_of_heads": "score m() = keys.norm(channel).avg_pool(head, 3)",
    "highest_of_heads_nearby": "score m() = keys.norm(channel).max_pool(head, 3)",
    "heads_shifted": "score m() = keys.norm(channel).shift(head, -1, fill = 0)",
    "another_head": "score m() = keys.norm(channel).at(head, heads - 1 - index(head))",
    "pool_of_heads_of_attention": """
score m() = attention(queries.last(8), keys).mean(query, group).avg_pool(token, 5).avg_pool(head, 3)
""",
    "rank_of_heads": """
score m() = attention(queries.last(8), keys).mean(query, group).avg_pool(token, 5).rank(head) * 0.5
""",
    "pool_of_heads_of_parts": """
press m() = attention(queries.last(8), keys).mean(query, group).chunk(5).avg_pool(head, 3) |> topk(drop(0.5))
""",
    "pool_of_heads_of_channels": "score m() = keys.std(token).softmax(channel).avg_pool(head, 3)",
    "heads_under_another_name": """
score m() = (keys.norm(channel).rename(head -> head') * keys.mean(channel)).max(head')
""",
    "softmax_of_heads": "score m() = keys.norm(channel).softmax(token).avg_pool(token, 3).softmax(head)",
    "running_sum_of_heads": "score m() = keys.norm(channel).softmax(token).avg_pool(token, 3).cumsum(head)",
    "mean_of_heads_and_tokens": """
score m() = {
  let x = keys.norm(channel).avg_pool(token, 3)
  return x - x.mean(head, token) + x.max(head)
}
""",
    # Filled with 1, so that memory which happens to be zero does not pass for it.
    "tail_of_whole_parts": (
        "score m() = keys.mean(channel).partition(token, 16, whole = true).join(fill = 1) |> chunk(16)"
    ),
    "parts_of_two_sizes": """
press m() =
  keys.norm(channel).partition(token, 16, whole = true).join(fill = 0) |> chunk(5) |> topk(keep(6))
""",
    "parts_of_two_sizes_after_a_selection": """
press a() = uniform(4, [head, token]) |> topk(drop(0.83))
press m() = compose(a(), keys.norm(channel).partition(token, 16).join(fill = 0) |> chunk(5) |> topk(keep(6)))
""",
    "turned_by_the_tokens_of_the_heads": """
press a() = uniform(4, [head, token]) |> topk(drop(0.4))
press m() = compose(a(), (rotate(keys, position) * rotate(keys.unrotated, 2 * original_position - 5)).sum(channel) |> topk(drop(0.5)))
""",
    "turns_added_and_averaged": """
score m(w: float[head, channel]) = {
  let t = position - index([ahead: 5])
  return dot(rotate(keys, t).mean(ahead), w, channel) + dot(rotate(values, -t).sum(ahead) / 5, w, channel)
}
""",
    "sums_of_turns": """
score m() = {
  let t = position - index([ahead: 5]) * (1 + index([far: 3]))
  return rotate(keys, t).sum(ahead, far).norm(channel) + rotate(values, t).sum(channel, far).max(ahead)
    + rotate(keys, t).sum(far, where = index([far: 3]) > 0).mean(ahead).sum(channel)
}
""",
    "turned_queries": """
score m() = dot(rotate(queries.last(4).unrotated.mean(query), seen + index([ahead: 7])).mean(ahead), keys, channel).max(group)
""",
    "form_of_turned_values": """
score m(w: float[head, channel, channel']) = {
  let v = rotate(values * (1 + index(channel)) / channels, 3)
  return (v * w * v.rename(channel -> channel')).sum(channel, channel') / channels
}
""",
    "form_of_survivors": """
press a() = keys.norm(channel) |> topk(drop(0.3))
press b() = {
  let c = queries.unrotated - queries.unrotated.mean(query)
  let cov = (c * c.rename(channel -> channel')).mean(query)
  return (keys * cov * keys.rename(channel -> channel')).sum(channel, channel').mean(group) |> topk(drop(0.5))
}
press m() = compose(a(), b())
""",
    "bilinear_in_keys_and_values": """
score m(w: float[head, channel, channel']) =
  (keys * w * values.rename(channel -> channel')).sum(channel, channel') / channels
""",
    "two_sides_of_an_outer_product": """
score m() = {
  let late = index(query) >= 3
  let a = queries.sum(group) / 4
  let b = queries.unrotated.max(group)
  let c = (a * b.rename(channel -> channel')).mean(query, where = late)
  return dot(keys, c, channel).norm(channel') / 10
}
""",
    "outer_products_of_tokens": """
score m() = {
  let k = where(position >= 2, keys - keys.mean(token), 0)
  let c = (k * k.rename(channel -> channel')).sum(token) / length
  return (keys * c * keys.rename(channel -> channel')).sum(channel, channel') / channels
}
""",
    "sorted_heads": """
score m() = keys.norm(channel).sort(head -> place).at(place, 1) * 2 + keys.sort(head -> head).sum(channel)
""",
    "sorted_heads_and_slots": """
score m() = {
  let p = keys.norm(channel).partition(token, 7)
  return (p.sort(head -> head) + p.sort(slot -> slot)).join(fill = 1)
}
""",
    "sorted_channels": """
score m() = {
  let s = keys.sort(channel -> place)
  return s.at(place, 0) - s.at(place, 5) + (s * s.index(place)).sum(place)
}
""",
    "sorted_queries_in_places": """
score m() = logits(queries.last(9), keys).mean(group).sort(query -> best, where = queries.last(9).index(query) != 3).at(best, 2)+0*position
""",
    "sorted_parts": """
score m() = {
  let p = keys.norm(channel).partition(token, 7).sort(part -> part)
  return p.sum(slot, part) * position + p.at(part, 3).sum(slot)
}
""",
    "sorted_slots": """
score m() = {
  let p = keys.norm(channel).partition(token, 20).sort(slot -> place)
  return p.mean(place).max(part) * position + (p.at(place, 11) * p.index(part)).sum(part)
}
""",
    "sorted_slots_of_some": """
score m() = {
  let x = keys.norm(channel).partition(token, 20)
  let p = x.sort(slot -> place, where = x > 3)
  return p.sum(place).max(part) * position + (p.at(place, 3) * p.index(part)).sum(part)
}
""",
    "sorted_along_a_longer_axis": """
score m() = (keys.norm(channel) * uniform(1, [n: 700])).sort(n -> k).at(k, 3)
""",
    "conditions_of_heads_on_orders": """
score m() = keys.norm(channel).rank(token, where = index(head) > 0) + keys.norm(channel).sort(token -> p, where = index(head) > 0).mean(p) + keys.norm(channel).cumsum(token, where = index(head) > 0)
""",
    "protected_heads_ranked": """
score m() = keys.norm(channel).protect(index(head) == 1).rank(token) + keys.norm(channel).protect(index(head) == 1).rank(head, token)
""",
    "protected_heads": """
press m() = keys.norm(channel).protect(index(head) == 1) |> topk(drop(0.5))
""",
    "ranked_over_parts_and_slots": """
score m() = {
  let p = keys.norm(channel).partition(token, 16)
  return (p.rank(part, slot) + 0.5 * p.rank(slot, part)).join(fill = -1) + (p * 3).rank(head, slot).join(fill = 0)
}
""",
    "ties_over_parts_and_slots": """
score m() = {
  let p = (position % 7).partition(token, 16)
  return (p.rank(part, slot) + 0.5 * p.rank(slot, part)).join(fill = -1) * 1.0
}
""",
    "protected_over_parts_and_slots": """
score m() = {
  let p = keys.norm(channel).partition(token, 16)
  return (p.protect(p > 5).rank(part, slot, where = p < 7) + p.rank(head, part, slot)).join(fill = -1)
}
""",
    "ranked_over_ragged_heads": """
press a() = mask(uniform(1, [head, token]) > index(head) * 0.3)
press m() = compose(a(), (values.norm(channel).rank(head, token) + 0.1 * keys.norm(channel).partition(token, 16).rank(head, part, slot).join(fill = 3)) |> topk(drop(0.3)))
""",
    "lengths_of_ragged_heads_reduced": """
press a() = mask(uniform(1, [head, token]) > index(head) * 0.3)
press m() = compose(a(), (values.norm(channel) - keys.mean(token, channel).max(head) * length + keys.mean(token).std(head, channel)) |> topk(drop(0.3)))
""",
    "lengths_of_ragged_heads_in_order": """
press a() = mask(uniform(1, [head, token]) > index(head) * 0.3)
press m() = compose(a(), (values.norm(channel) - (values.mean(token) * length).rank(head).sum(channel)+(values.mean(token) * length).shift(head, 1, fill = 2).at(channel, 1)) |> topk(drop(0.3)))
""",
    "slots_of_the_last_part": """
score m() = {
  let p = keys.partition(token, 16)
  let q = p.at(part, int(length / 16))
  return dot(keys, q.mean(slot), channel) + q.norm(channel).max(slot) + q.norm(channel).sort(slot -> s).at(s, 9) + q.at(slot, 14).sum(channel) + q.norm(channel).softmax(slot).avg_pool(slot, 3).shift(slot, 1, fill = 9).sum(slot) + q.norm(channel).rank(slot).sum(slot)
}
""",
    "slots_of_any_part": """
score m() = {
  let p = keys.norm(channel).partition(token, 16)
  let q = p.at(part, position % 50)
  return q.mean(slot) + (q * q).rename(slot -> s).sum(s) * 0.1 + q.softmax(slot).max(slot)
}
""",
    "slots_of_the_mirrored_part": """
score m() = {
  let p = keys.norm(channel).partition(token, 16)
  let q = p.at(part, int(extent(token) / 16) - p.index(part))
  return (p - q).join(fill = 0) + (q.mean(slot) + 0 * p).join(fill = 0)
}
""",
    "slots_contracted": """
score m() = {
  let p = keys.partition(token, 16)
  let q = p.at(part, int(extent(token) / 16))
  return dot(keys, (q * q.rename(channel -> channel')).sum(slot).sum(channel'), channel) + q.sum(slot, channel) + dot(q.norm(channel),q.max(channel), slot)
}
""",
    "slots_of_the_last_part_joined": """
score m() = {
  let p = keys.norm(channel).partition(token, 16)
  let q = p.at(part, int(extent(token) / 16))
  return (p - q).join(fill = -5) + (p*q).at(slot, 13).sum(part)
}
""",
    "uniform_over_channels": """
score m() = (keys * uniform(4, [channel])).sum(channel) + (keys * uniform(4, [head, channel])).sum(channel) + (values * uniform(4, [head, token, channel])).max(channel) + uniform(3, [token, channel, n: 3]).sum(channel, n)
""",
    "uniform_over_channels_that_are_left": """
press a() = keys.norm(token) |> topk(keep(7))
press m() = compose(a(), (keys * uniform(4, [head, channel])).sum(channel) + (keys*uniform(7, [head, token, channel, n: 2])).max(channel, n) |> topk(drop(0.4)))
""",
    "uniform_over_channels_left_for_all": """
press a() = keys.norm(token).sum(head) |> topk(keep(7))
press m() = compose(a(), (keys * uniform(4, [channel])).sum(channel) |> topk(drop(0.4)))
""",
    "parts_of_a_range": """
press m() = keys.norm(channel).partition(token, 16, from = 4, to = length - 9).mean(slot) |> topk(drop(0.5))
""",
    "a_range_that_short_rows_have_not": """
press m() = keys.norm(channel).partition(token, 1, from = 50).mean(slot) |> topk(drop(0.5))
""",
    "whole_parts": """
press m() = keys.norm(channel).partition(token, 50, whole = true).mean(slot) |> topk(drop(0.5))
""",
    "a_range_past_the_end": """
press m() = position.partition(token, 16, from = length - 100, to = 300).mean(slot) |> topk(drop(0.5))
""",
    "survivors_of_parts_of_a_range": """
press a() = keys.norm(channel).partition(token, 16, from = 4, to = length - 9).mean(slot) |> topk(drop(0.5))
press m() = compose(a(), knorm() |> topk(drop(0.5)))
""",
    "ranges_that_rows_cut": """
score m() = keys.norm(channel).partition(token, 16, from = length - 100, to = 300).mean(slot).max(part)*position + keys.norm(channel).partition(token, 16, from = length - 100, to = 300).join(fill=4)
""",
    "queries_of_tokens": """
score m() = queries.norm(channel).mean(group).rename(query -> token) + (queries.rename(query -> token).mean(group) * keys).sum(channel)
""",
    "queries_of_survivors": """
press m() = compose(knorm() |> topk(drop(0.4)), queries.norm(channel).mean(group).rename(query -> token) |> topk(drop(0.3)))
""",
    "attention_to_other_heads": """
press m() = compose(knorm() |> topk(drop(0.4)), attention(queries.last(5).rename(head -> h), keys).mean(query, group, h) + logits(queries.last(5).rename(head -> h), keys).max(query, group, h) |> topk(drop(0.3)))
""",
    "shares_of_heads": """
press m() = keys.norm(channel) |> topk(drop(clamp(keys.norm(token, channel) / 200, 0, 0.9)))
""",
    "shares_of_heads_in_parts": """
press m() = keys.norm(channel) |> chunk(7) |> topk(drop(clamp(keys.norm(token, channel) / 200, 0, 0.9)))
""",
    # A short last part lacks slots, also where values of parts and of slots alone make an entry.
    "parts_meet_slots": """
score m() = {
  let p = keys.norm(channel).partition(token, 16)
  let x = p.mean(part) + p.mean(slot)
  let y = where(x > 5, p.index(part), p.index(slot)) * 0.1
  return (x.softmax(slot) + x.rank(slot) + x.rank(part, slot) / length).join(fill = -1)
    + x.std(slot).max(part) + y.sum(part, slot) / length + (x > 5).count(part).sum(slot)
    + (p.max(part) * p.index(part)).at(slot, 14).sum(part) * position
}
""",
    "slots_picked_by_slots": """
score m() = {
  let p = keys.norm(channel).partition(token, 16)
  let x = p.at(slot, 15 - p.index(slot)) * p.at(slot, p.index(slot))
  return x.sum(slot).sum(part) + (x.max(part) + p.min(slot)).rename(slot -> s).mean(s).max(part) * position
}
""",
    # Each has the slots that both parts have; or the part that is picked, and the one that picks.
    "slots_of_two_axes_of_parts": """
score m() = {
  let p = keys.norm(channel).partition(token, 16)
  let q = p.rename(part -> q)
  return (q * p).sum(slot).max(q).sum(part) * position + dot(p, q, slot).min(q).max(part)
    + (q + p.max(slot)).mean(slot).sum(q).max(part) + where(q > p, p, q).rank(slot).max(slot, q, part)
}
""",
    "parts_picked_by_slots": """
score m() = {
  let p = keys.norm(channel).partition(token, 16)
  let before = p.index(part) - p.index(slot)
  return p.at(part, before).sum(slot).max(part) * position + (p.at(part, 2 * before) > 4).count(slot, part) * 0.1
    + p.mean(slot).at(part, before).sum(slot).max(part) * position
}
""",
    "whole_parts_of_ragged_heads": """
press a() = keys.norm(channel) |> topk(keep(12 + index(head)))
press m() = compose(a(), values.norm(channel).partition(token, 4, from = 2, whole = true).max(slot) |> topk(drop(0.3)))
""",
    "means_of_whole_parts_of_ragged_heads": """
press a() = keys.norm(channel) |> topk(keep(12 + 2 * index(head)))
press b() = {
  let p = values.norm(channel).partition(token, 4, from = 3, whole = true)
  return p.join(fill = 3) * p.max(slot).mean(part) - p.sum(slot).std(part) |> topk(drop(0.4))
}
press m() = compose(a(), b())
""",
    "more_neighbours_than_entries": """
score m() = keys.norm(channel).avg_pool(token, 4001) * 4001 + keys.norm(channel).max_pool(token, 2000000001)
  + keys.norm(channel).partition(token, 7).avg_pool(slot, 31).max(slot).sum(part) * position
""",
    "remainders": """
score m() = (position * 1000003.0) % 0.7 + position * 1.0 % 0.1 + (position * 1e20) % 3.0 + (-position) % 7.5
  + (position * 1e30) % (position - 3.0) * 0.1 + (length * 1e25 % 0.7) + (-length) % 1e300 % 1e-310
  + keys.norm(channel) % (1 / (position * 0))
""",
    "places_of_ragged_heads_in_order": """
press a() = keys.norm(channel) |> topk(keep(12 + 3 * index(head)))
press b() = {
  let place = (position % 7) - index(values, token) / length
  let p = position.partition(token, 5)
  return keys.norm(channel) + (position * 1.0).softmax(token) * 40 - place.rank(token)
    + p.index(part).max(part) / 5 + (p.index(part) % 3).rank(part).max(part) |> topk(drop(0.3))
}
press m() = compose(a(), b())
""",
    "parts_of_places_in_ragged_heads": """
press a() = keys.norm(channel) |> topk(keep(12 + 3 * index(head)))
press m() = compose(a(), position.partition(token, 4).max(slot) |> topk(drop(0.3)))
""",
    "slots_by_another_name": """
score m() = {
  let p = keys.norm(channel).partition(token, 20).rename(slot -> s)
  let q = p.rename(part -> q)
  return p.mean(s).max(part) + p.std(s).sum(part) + q.mean(q, s) * position + q.rank(q, s).sum(q, s)
}
""",
    # All queries and tokens: blocks of queries.
    "all_queries": "score m() = attention(queries, keys).sum(query).mean(group) / (length - position)",
    "all_queries_at_most": """
score m() = attention(queries, keys).max(query, group) + (-attention(queries, keys)).max(query).min(group)
""",
    "all_queries_at_least": """
score m() = 3 * attention(queries, keys).min(query).mean(group) + logits(queries, keys).max(query, group)
""",
    "all_queries_late": """
score m() = attention(queries, keys).mean(query, where = index(query) >= 3).sum(group) * 10
  + attention(queries, keys, where = position % 3 == 0).mean(query, group)
""",
    "all_queries_twice": """
score m() = {
  let a = attention(queries, keys)
  return a.std(query).mean(group) + (a * a.normalize(query)).sum(query).max(group)
}
""",
    "all_queries_along_tokens": """
score m() = {
  let a = attention(queries, keys)
  let spread = -(a * log(a + 0.001)).sum(token)  # [head, group, query]
  return (a * spread).sum(query).mean(group) + spread.mean(query, group) * keys.norm(channel)
    + a.max(token).std(query).sum(group) * position / length
}
""",
    "all_queries_pooled": """
score m() = attention(queries, keys).avg_pool(token, 5).max(query).mean(group)
  + attention(queries, keys).mean(group).shift(token, 2, fill = 0.5).sum(query)
""",
    "all_queries_over_parts": """
press m() = attention(queries, keys).partition(token, 16).max(slot).sum(query).mean(group) |> topk(drop(0.5))
""",
    "all_queries_of_survivors": """
press a() = keys.norm(channel) |> topk(drop(0.4))
press m() = compose(a(), attention(queries, keys).sum(query).mean(group) |> topk(drop(0.5)))
""",
    "all_queries_in_two_stages": """
press a() = attention(queries, keys).sum(query).mean(group) |> topk(drop(0.3))
press b() = (attention(queries, keys) * values.norm(channel)).max(query).mean(group) |> topk(drop(0.5))
press m() = compose(a(), b())
""",
    "all_queries_of_runs": """
press m() = compose(
  attention(queries, keys).sum(query, group, head) |> chunk(20) |> topk(drop(0.4)),
  attention(queries, keys).std(query).mean(group).protect(position > length - 4) |> topk(drop(0.5)),
)
""",
    "all_queries_of_thinned_keys": """
press t() = (keys ** 2).mean(token) |> topk(keep(9))
press m() = compose(t(), attention(queries, keys).sum(query, group) |> topk(drop(0.5)))
""",
    "all_queries_after_work": """
score m() = {
  let q = queries * (1 + index(channel) / channels) - queries.mean(group)
  return attention(q, keys * 0.5).max(query).sum(group) + attention(queries.unrotated, values).sum(query, group) / 9
}
""",
    "all_queries_of_all_heads": """
score m() = attention(queries, keys).sum(query, head).mean(group) + attention(queries.mean(head), keys.mean(head)).sum(query, group)
""",
    "all_queries_weighed": """
score m() = (attention(queries, keys) * values.norm(channel) / (1 + index(query))).sum(query, group)
  + (attention(queries, keys) * keys.mean(channel).softmax(token)).max(query).mean(group) * 50
""",
    "all_queries_counted": """
score m() = {
  let a = attention(queries, keys)
  return (a > 0.02).count(query).mean(group) / 100 + where((a > 0.3).any(query, group), 1, 0) + keys.norm(channel)
}
""",
    "all_queries_ranked": """
score m() = {
  let a = attention(queries, keys)
  return where(a.rank(token) < 4, a, 0).sum(query, group) + a.cumsum(token).mean(query, group)
}
""",
    "softmax_along_queries": """
score m() = keys.norm(channel) * queries.norm(channel).softmax(query).max(query, group) * 100
  + (attention(queries, keys) * queries.norm(channel).softmax(query)).sum(query, group) * 100
  + (attention(queries, keys).max(token).softmax(query) * attention(queries, keys)).sum(query, group) * 100
""",
    "softmax_of_all_queries": "score m() = logits(queries, keys).softmax(query).max(query).mean(group)",
    "answers_of_all_queries": """
score m() = {
  let o = (attention(queries, keys) * values).sum(token)  # [head, group, query, channel]
  return dot(o.mean(query, group), values, channel)
}
""",
    "some_and_all_queries": """
score m() = attention(queries.last(5), keys).mean(query, group) + attention(queries, keys).mean(query, group)
""",
    "all_queries_without_tokens": """
score m() = keys.norm(channel) * queries.std(query, group).mean(channel) + queries.max(query).sum(group, channel)
""",
}


# Their tensors.
WEIGHTS = {
    "turns_added_and_averaged": {"w": ("head", "channel")},
    "form_of_turned_values": {"w": ("head", "channel", "channel'")},
    "bilinear_in_keys_and_values": {"w": ("head", "channel", "channel'")},
    "ranks_of_all_layers": {"w": ("layer", "head")},
    "reduced_over_layers": {"w": ("layer", "head", "channel")},
}


def corner(name):
    """A corner as a program. One declaration alone gets a name of its own, to share a file."""
    source = CORNERS[name]
    kind = "press" if "press m" in source else "score"
    called = "m"
    if len(re.findall(r"^(?:score|press|fn) ", source, re.M)) == 1:
        called = f"c_{name}"
        source = source.replace(f"{kind} m(", f"{kind} {called}(")
    return Program(called, kind, source, tensors=WEIGHTS.get(name, {}))


def groups_of(programs):
    """Programs that share files; one that has functions of its own has a file of its own."""
    shared = [one for one in programs if one.name != "m"]
    return [shared[i : i + GROUP] for i in range(0, len(shared), GROUP)] + [
        [one] for one in programs if one.name == "m"
    ]


class Groups:
    """Runs groups of programs in the background, each when one of its programs is asked for."""

    def __init__(self):
        programs = [program(seed) for seed in range(COUNT)]
        self.groups = groups_of(programs) + groups_of([corner(name) for name in CORNERS])
        self.place = {one.source: n for n, group in enumerate(self.groups) for one in group}
        self.pool = ThreadPoolExecutor(2)
        self.running = {}

    def outcome(self, one):
        """What went wrong with a program; None: nothing."""
        place = self.place[one.source]
        for group in (place, place + 1):
            if group < len(self.groups) and group not in self.running:
                self.running[group] = self.pool.submit(run_group, self.groups[group])
        return self.running[place].result()[one.source]


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVPC_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = Groups()
        yield made
        made.pool.shutdown(cancel_futures=True)


def compiled(programs, level):
    source = "\n\n".join(p.source for p in programs)
    names = [p.name for p in programs]
    return kvpc.compile(source, press=names, optimization=level, **QUICK)


def run_group(programs):
    """What went wrong with each, by its source."""
    try:
        modules = [compiled(programs, level) for level in ("O0", "O2")]
    except kvpc.CompileError:
        modules = None  # one of them is to blame: each by itself
    outcomes = {}
    for one in programs:
        try:
            check(one, modules or [compiled([one], level) for level in ("O0", "O2")])
            outcomes[one.source] = None
        except Exception as error:
            told = "\n".join(str(error).splitlines()[:2])  # and not a crash's stack
            outcomes[one.source] = f"{type(error).__name__}: {told}\n{one.source}"
    return outcomes


def press_of(one, module):
    info = module.presses[one.name]
    make = torch.Generator().manual_seed(3)
    sizes = {"layer": SMALL["layers"], "head": HEADS, "channel": CHANNELS, "channel'": CHANNELS}
    tensors = {
        name: torch.randn([sizes[a] for a in axes], generator=make)
        for name, axes in one.tensors.items()
        if name in info.weights
    }
    # A score that is exported for itself has a budget of its own.
    budget = {"drop": 0.4} if one.kind == "score" else {}
    return module.press(one.name, **one.arguments, **budget, **tensors)


def rows_of(nudged=0):
    rows = [row(n, seed=n, heads=HEADS, channels=CHANNELS) for n in LENGTHS]
    make = torch.Generator().manual_seed(nudged)
    for one in rows if nudged else ():
        for tensor in (one.keys, one.values, one.queries):
            tensor *= 1 + NUDGE * (2 * torch.rand(tensor.shape, generator=make) - 1)
    return rows


def call_for(press, nudged=0):
    asked = {x: press.inputs[x] for x in ("queries", "unrotated_queries") if x in press.inputs}
    window = None if "all" in asked.values() else max(asked.values(), default=0)
    # Padding is finite here: it would be hard to say of `inf - inf` whose fault it is.
    call = batch(rows_of(nudged), "left", window) | SMALL
    queries = call.pop("queries", None)
    call |= dict.fromkeys(asked, queries)
    call["rope"] = kvpc.Rope(30.0 ** -torch.arange(0, 1, 2.2 / CHANNELS)[: 3 * CHANNELS // 8], 1.1)
    if "output_weight" in press.inputs:  # more features than a block has rows
        make = torch.Generator().manual_seed(7)
        weight = torch.randn(150, 2 * HEADS * CHANNELS, generator=make) / 8
        call["output_weight"] = weight.to(call["keys"].dtype)
    return call


def off(ours, wanted, allowed):
    """Where scores differ by more than is allowed."""
    exact = (ours == wanted) | (ours.isnan() & wanted.isnan())
    return ~exact & ~((ours - wanted).abs() <= allowed)


def check_scores(press, call, ours, wanted):
    size = wanted.abs().nan_to_num(0, 0, 0).amax(-1, keepdim=True)
    allowed = (BOUND * size + 1e-7).expand_as(wanted)
    if not off(ours, wanted, allowed).any():
        return
    moved = torch.zeros_like(wanted)
    for i in (1, 2, 3, 4):
        other, _ = press.scores(**call_for(press, i), backend="reference")
        moved = torch.maximum(moved, (other - wanted).abs().nan_to_num(0))
    allowed = allowed + MAGNIFIED * moved
    bad = off(ours, wanted, allowed)
    count = int(bad.sum())
    assert not count, (
        f"{count} of {bad.numel()} scores differ, at {bad.nonzero()[0].tolist()} "
        f"{ours[bad][0]} for {wanted[bad][0]}; row's largest {size.expand_as(wanted)[bad][0]}"
    )


def masks(press, out, call):
    """Which tokens and channels an output holds, as bool tensors."""
    tokens = torch.zeros(*call["keys"].shape[:3], dtype=torch.bool)
    channels = torch.zeros(*call["keys"].shape[:2], call["keys"].shape[3], dtype=torch.bool)
    length = call["lengths"]
    for index in range(len(length)):
        here = kept(out, call, index)
        start = tokens.shape[2] - int(length[index])
        for head, chosen in enumerate(here.tokens):
            tokens[index, head, chosen + start] = True
            if here.channels is not None:
                channels[index, head, here.channels[head]] = True
    return tokens, channels


def check_choice(press, call, out, given):
    """The reference's choice by our scores; where it has to score again, near ties may differ."""
    wanted = selected_by_reference(press, call, given)
    ours, theirs = masks(press, out, call), masks(press, wanted, call)
    if all(torch.equal(a, b) for a, b in zip(ours, theirs)):
        for index in range(len(LENGTHS)):
            assert kept(out, call, index) == kept(wanted, call, index)
        return
    shaky = [torch.zeros_like(x) for x in ours]
    for i in (1, 2, 3, 4):
        other = masks(press, selected_by_reference(press, call_for(press, i), given), call)
        for mark, a, b in zip(shaky, other, theirs):
            mark |= a != b
    for mark, a, b in zip(shaky, ours, theirs):
        wrong = ((a != b) & ~mark).nonzero().tolist()
        assert not wrong, f"{len(wrong)} entries chosen otherwise, near no threshold: {wrong[:6]}"


def check(one, modules):
    wanted = plain = None
    for level, module in zip(("O0", "O2"), modules):
        press = press_of(one, module)
        call = call_for(press)
        out = press.compress(**call)
        check_output(out, call)
        given = None
        if press.info.score_axes is not None:
            given = press.scores(**call)
            wanted = wanted or press.scores(**call, backend="reference")
            assert torch.equal(given[1], wanted[1]), f"-{level}: protected entries"
            try:
                check_scores(press, call, given[0], wanted[0])
            except AssertionError as error:
                raise AssertionError(f"-{level}: {error}") from None
        # The choice that is right by -O0's scores is right by these, which are as near as may be.
        parts = ("tokens", "channels", "lengths", "keys", "values")
        if plain and all(same_bits(getattr(out, x), getattr(plain, x)) for x in parts):
            continue
        try:
            check_choice(press, call, out, given)
        except AssertionError as error:
            raise AssertionError(f"-{level}: {error}") from None
        plain = out


@pytest.mark.parametrize("seed", range(COUNT))
def test_program(groups, seed):
    wrong = groups.outcome(program(seed))
    assert wrong is None, f"seed {seed}: {wrong}"


@pytest.mark.parametrize("name", CORNERS)
def test_corner(groups, name):
    wrong = groups.outcome(corner(name))
    assert wrong is None, wrong


@pytest.mark.parametrize("seed", range(3, COUNT, 50))
def test_f16(tmp_path, monkeypatch, seed):
    """Storage of another dtype: the same programs on caches of it."""
    monkeypatch.setenv("KVPC_CACHE", str(tmp_path))
    one = program(seed)
    monkeypatch.setitem(QUICK, "dtypes", "f16")
    plain = rows_of

    def halved(nudged=0):
        out = plain(nudged)
        for r in out:
            r.keys, r.values, r.queries = r.keys.half(), r.values.half(), r.queries.half()
        return out

    monkeypatch.setitem(globals(), "rows_of", halved)
    check(one, [compiled([one], level) for level in ("O0", "O2")])


# Wide values in every place: under softmax, beside orders of them, in blocks of queries, of survivors.
WIDE = (
    "contracted_and_ranked", "rows_of_other_heads", "softmax_beside_other_entries",
    "wide_values_ranked_over_heads", "rows_with_an_axis_of_their_own", "parts_meet_tokens",
)  # fmt: skip


@pytest.mark.parametrize("one", [*range(11, COUNT, 40), *WIDE], ids=str)
def test_workspace(tmp_path, monkeypatch, one):
    """Whatever may be held of wide values, or has to be made again, no bit differs."""
    monkeypatch.setenv("KVPC_CACHE", str(tmp_path))
    one = corner(one) if isinstance(one, str) else program(one)
    results = []
    for workspace in (None, 0, 0.2):
        options = {} if workspace is None else {"workspace": workspace}
        press = press_of(one, kvpc.compile(one.source, press=[one.name], **options, **QUICK))
        call = call_for(press)
        scores = press.scores(**call) if press.info.score_axes is not None else ()
        results.append((press.compress(**call), scores))
    for out, scores in results[1:]:
        plain, wanted = results[0]
        assert all(same_bits(a, b) for a, b in zip(scores, wanted))
        for part in ("tokens", "channels", "lengths", "keys", "values"):
            assert same_bits(getattr(out, part), getattr(plain, part)), part


def test_generator():
    """The same seed is the same program; together they use what the language has."""
    text = "\n".join(program(seed).source for seed in range(COUNT))
    assert text == "\n".join(program(seed).source for seed in range(COUNT))
    kinds = {program(seed).kind for seed in range(COUNT)}
    assert kinds == {"score", "press"}
    used = (
        "softmax normalize cumsum rank avg_pool max_pool shift partition join chunk protect mask "
        "compose dot cosine attention logits uniform where = sum mean max min std var norm tanh "
        "sigmoid gelu relu abs sqrt rsqrt log exp clamp maximum minimum let fn keep(  drop( queries.last "
        "over at_least count output_weight feature rotate unrotated"
    )
    missing = [word for word in used.split() if word not in text]
    assert not missing, missing


if __name__ == "__main__":
    import sys

    os.environ.setdefault("KVPC_CACHE", "/tmp/kvpc-random")
    for seed in range(*map(int, sys.argv[1:])):
        print(seed, *run_group([program(seed)]).values(), flush=True)
