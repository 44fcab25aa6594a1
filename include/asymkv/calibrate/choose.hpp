// choose.hpp: one format for each side of each layer, so that the summed damage is least and the bytes stay in a
// budget: a knapsack in which every curve gives exactly one point. Used by calibrate(), and by callers with curves of
// their own.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "asymkv/cache/sequence_cache.hpp"
#include "asymkv/policy.hpp"

ASYMKV_NAMESPACE_BEGIN

/// What a format does to one side of one layer. damage is at least 0, in a unit that can be added over layers.
struct CurvePoint {
  Format format;
  double damage = 0;
};

/// The formats that one side of one layer may get, in any order; of equals the first is taken. A point that costs more
/// bytes and does more damage than another is never chosen, so that curves need not be monotone.
struct Curve {
  Index layer = 0;
  Side side = Side::keys;
  std::vector<CurvePoint> points;
};

/// Bytes that a page of 128 tokens takes on one side of one layer, all kv heads together.
inline Index page_bytes(const Format& format, Side side, const CacheShape& shape) noexcept {
  return shape.kv_heads *
         detail::side_bytes(format, side, side == Side::keys ? shape.key_dim : shape.value_dim, page_tokens);
}

/// The bytes that a page of 128 tokens of every layer may take at so many all-in bits (0..64) an element, rounded down.
inline Index budget_bytes(double bits, const CacheShape& shape) noexcept {
  const Index elements = shape.layers * shape.kv_heads * (shape.key_dim + shape.value_dim) * page_tokens;
  return Index(std::floor(std::clamp(bits, 0.0, 64.0) * double(elements) / 8.0));
}

namespace detail {

/// Curves as weights: each point's bytes above those of its curve's cheapest point, in units.
struct Knapsack {
  std::vector<std::vector<Index>> weights;
  Index least = 0;     ///< bytes of all cheapest points
  Index capacity = 0;  ///< units that may be spent above `least`
};

/// The unit is the greatest that divides all weights. Where that leaves more than `most_units`, which takes budgets of
/// hundreds of layers, units are coarser and weights rounded up: the budget holds, some of it (1% at 600 layers) may
/// stay unspent.
inline Knapsack make_knapsack(const std::vector<Curve>& curves, const CacheShape& shape, Index budget) {
  Knapsack sack;
  Index unit = 0, most = 0;
  for (const Curve& curve : curves) {
    std::vector<Index> weights;
    for (const CurvePoint& point : curve.points) weights.push_back(page_bytes(point.format, curve.side, shape));
    const Index least = *std::min_element(weights.begin(), weights.end());
    sack.least += least;
    for (Index& weight : weights) unit = std::gcd(unit, weight -= least);
    most += *std::max_element(weights.begin(), weights.end());
    sack.weights.push_back(std::move(weights));
  }
  const Index most_units = std::clamp((Index(1) << 28) / Index(curves.size()), Index(1024), Index(65536));
  const Index slack = budget > sack.least ? std::min(budget - sack.least, most) : 0;
  unit = std::max({unit, (slack + most_units - 1) / most_units, Index(1)});
  for (std::vector<Index>& weights : sack.weights)
    for (Index& weight : weights) weight = (weight + unit - 1) / unit;
  sack.capacity = slack / unit;
  return sack;
}

/// The point of each curve. best[w] is the least damage of the curves so far with w units at most; taken[i][w] the
/// point of curve i that gives it. O(curves * points * units) time, O(curves * units) bytes.
inline std::vector<std::size_t> solve(const std::vector<Curve>& curves, const Knapsack& sack) {
  const std::size_t units = std::size_t(sack.capacity) + 1;
  std::vector<double> best(units, 0.0), next(units);
  std::vector<std::vector<std::uint8_t>> taken(curves.size(), std::vector<std::uint8_t>(units));
  for (std::size_t i = 0; i < curves.size(); ++i) {
    std::fill(next.begin(), next.end(), std::numeric_limits<double>::infinity());
    for (std::size_t p = 0; p < curves[i].points.size(); ++p)
      for (std::size_t w = std::size_t(sack.weights[i][p]); w < units; ++w) {
        const double damage = best[w - std::size_t(sack.weights[i][p])] + curves[i].points[p].damage;
        if (damage >= next[w]) continue;
        next[w] = damage;
        taken[i][w] = std::uint8_t(p);
      }
    best.swap(next);
  }
  std::size_t w = std::size_t(std::min_element(best.begin(), best.end()) - best.begin());  // no unit without a use
  std::vector<std::size_t> chosen(curves.size());
  for (std::size_t i = curves.size(); i-- > 0; w -= std::size_t(sack.weights[i][chosen[i]])) chosen[i] = taken[i][w];
  return chosen;
}

/// That there is one good curve for each side of each layer, in order.
inline Status check_curves(const std::vector<Curve>& curves, const CacheShape& shape) noexcept {
  if (Index(curves.size()) != 2 * shape.layers)
    return Status::error(ErrorCode::invalid_argument, "curves: %zu, must be 2 for each of %lld layers", curves.size(),
                         number(shape.layers));
  for (std::size_t i = 0; i < curves.size(); ++i) {
    const Curve& curve = curves[i];
    if (curve.layer != Index(i / 2) || curve.side != (i % 2 == 0 ? Side::keys : Side::values))
      return Status::error(ErrorCode::invalid_argument, "curves: number %zu must be %s of layer %zu", i,
                           side_name(i % 2 == 0 ? Side::keys : Side::values), i / 2);
    if (curve.points.empty() || curve.points.size() > 256)
      return Status::error(ErrorCode::invalid_argument, "curves: %s of layer %zu have %zu points; use 1..256",
                           side_name(curve.side), i / 2, curve.points.size());
    for (const CurvePoint& point : curve.points) {
      if (Status status = check(point.format, curve.side); !status.ok()) return status;
      if (!(point.damage >= 0.0 && point.damage <= 1e300))  // sums stay finite
        return Status::error(ErrorCode::invalid_argument, "curves: %s of layer %zu have a damage of %g",
                             side_name(curve.side), i / 2, point.damage);
    }
  }
  return {};
}

}  // namespace detail

/// Of each curve the index of the point that makes the summed damage least while a page of every layer takes `budget`
/// bytes at most. curves: those of layer 0's keys, its values, layer 1's keys, and so on. The same on every machine.
/// Errors: invalid_argument (curves), out_of_range (even the cheapest points take more; the message says how much).
inline Result<std::vector<std::size_t>> choose_points(const std::vector<Curve>& curves, const CacheShape& shape,
                                                      Index budget) {
  if (Status status = detail::check_shape(shape); !status.ok()) return status;
  if (Status status = detail::check_curves(curves, shape); !status.ok()) return status;
  const detail::Knapsack sack = detail::make_knapsack(curves, shape, budget);
  if (sack.least > budget) {
    const double elements = double(shape.layers * shape.kv_heads * (shape.key_dim + shape.value_dim) * page_tokens);
    return Status::error(ErrorCode::out_of_range,
                         "budget: %lld bytes a page of all layers (%.4f bits an element); the least is %lld (%.4f)",
                         detail::number(budget), 8.0 * double(budget) / elements, detail::number(sack.least),
                         8.0 * double(sack.least) / elements);
  }
  return detail::solve(curves, sack);
}

/// The policy that those points make, with `sinks` tokens in full precision. Errors: invalid_argument (sinks).
inline Result<AsymKVPolicy> policy_of(const std::vector<Curve>& curves, const std::vector<std::size_t>& points,
                                      Index sinks) {
  std::vector<LayerFormat> layers(curves.size() / 2);
  for (std::size_t i = 0; i < curves.size(); ++i)
    (i % 2 == 0 ? layers[i / 2].keys : layers[i / 2].values) = curves[i].points[points[i]].format;
  Result<AsymKVPolicy> policy = AsymKVPolicy::table(std::move(layers));
  return policy.ok() ? policy->with_sinks(sinks) : policy;
}

ASYMKV_NAMESPACE_END
