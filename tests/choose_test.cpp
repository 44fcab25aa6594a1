// The knapsack of calibration against brute force.
#include <gtest/gtest.h>

#include <asymkv/calibrate/choose.hpp>
#include <random>

namespace {

using namespace asymkv;

/// Random curves of three or four formats a side.
std::vector<Curve> random_curves(std::mt19937& generator, Index layers) {
  const Format keys[] = {Format::mixed_keys(1), Format{1}, Format{2}, Format::mixed_keys(7), Format{16}};
  const Format values[] = {Format{4}, Format::rotated_values(1), Format::rotated_values(3), Format{8}};
  std::vector<Curve> curves;
  for (Index i = 0; i < 2 * layers; ++i) {
    curves.push_back({i / 2, i % 2 == 0 ? Side::keys : Side::values, {}});
    for (std::size_t p = 0; p < 3 + generator() % 2; ++p)
      curves.back().points.push_back(
          {i % 2 == 0 ? keys[(p + i) % 5] : values[(p + i) % 4], double(generator() % 20) / 4});
  }
  return curves;
}

struct Sums {
  double damage = 0;
  Index bytes = 0;
};
Sums sums(const std::vector<Curve>& curves, const std::vector<std::size_t>& points, const CacheShape& shape) {
  Sums total;
  for (std::size_t i = 0; i < curves.size(); ++i) {
    total.damage += curves[i].points[points[i]].damage;
    total.bytes += page_bytes(curves[i].points[points[i]].format, curves[i].side, shape);
  }
  return total;
}

/// The least damage of all combinations; infinite if none fits.
double brute_force(const std::vector<Curve>& curves, const CacheShape& shape, Index budget) {
  std::vector<std::size_t> points(curves.size(), 0);
  double least = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < curves.size();) {
    const Sums total = sums(curves, points, shape);
    if (total.bytes <= budget) least = std::min(least, total.damage);
    for (i = 0; i < curves.size() && ++points[i] == curves[i].points.size(); ++i) points[i] = 0;
  }
  return least;
}

TEST(Choose, IsAsGoodAsBruteForce) {
  std::mt19937 generator(1);
  int fitting = 0;
  for (int round = 0; round < 150; ++round) {
    const CacheShape shape{1 + round % 4, 3, 64 + 16 * (round % 3), 64};
    const std::vector<Curve> curves = random_curves(generator, shape.layers);
    const Index budget = budget_bytes(double(generator() % 9000) / 1000, shape) + Index(generator() % 64);
    const double least = brute_force(curves, shape, budget);
    const auto points = choose_points(curves, shape, budget);
    ASSERT_EQ(points.ok(), least < 1e9) << round;
    if (!points.ok()) {
      EXPECT_EQ(points.status().code(), ErrorCode::out_of_range);
      continue;
    }
    ++fitting;
    EXPECT_EQ(sums(curves, *points, shape).damage, least) << round;  // quarters add up exactly
    EXPECT_LE(sums(curves, *points, shape).bytes, budget) << round;
  }
  EXPECT_GT(fitting, 50);
}

TEST(Choose, CoarseUnitsOfManyLayersStayInTheBudget) {
  std::mt19937 generator(2);
  const CacheShape shape{600, 1, 1024, 1024};
  std::vector<Curve> curves = random_curves(generator, shape.layers);
  for (Curve& curve : curves)
    for (CurvePoint& point : curve.points) point.damage = 1e9 / double(page_bytes(point.format, curve.side, shape));
  const Index budget = budget_bytes(4.321, shape);
  const auto points = choose_points(curves, shape, budget);
  ASSERT_TRUE(points.ok()) << points.status().message();
  EXPECT_LE(sums(curves, *points, shape).bytes, budget);
  EXPECT_GT(sums(curves, *points, shape).bytes, budget - budget / 50);
}

TEST(Choose, CurvesAreChecked) {
  std::mt19937 generator(3);
  const std::vector<Curve> good = random_curves(generator, 2);
  const auto refused = [](const std::vector<Curve>& curves) {
    return choose_points(curves, {2, 2, 64, 32}, 1 << 30).status().code() != ErrorCode::ok;
  };
  EXPECT_FALSE(refused(good));
  EXPECT_TRUE(refused({}));
  for (const double damage : {-1.0, std::nan(""), HUGE_VAL}) {
    auto curves = good;
    curves[3].points[0].damage = damage;
    EXPECT_TRUE(refused(curves)) << damage;
  }
  auto swapped = good;
  std::swap(swapped[0], swapped[2]);
  EXPECT_TRUE(refused(swapped));
  auto rotated = good;
  rotated[0].points[0].format = Format::rotated_values(1);  // of keys
  EXPECT_TRUE(refused(rotated));
  auto empty = good;
  empty[1].points.clear();
  EXPECT_TRUE(refused(empty));
}

}  // namespace
