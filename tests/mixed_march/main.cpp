// main.cpp: runs the generic unit, and on a processor that has its instructions the AVX-512 unit; both must read and
// compute the same.
#include <cmath>
#include <cstdio>

bool generic_unit(double& sum);
bool avx512_unit(double& sum);

namespace {

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool run(const char* name, bool (*unit)(double&), double& sum) {
  const bool ok = unit(sum);
  std::printf("%s unit: %s, sum %.9g\n", name, ok ? "ok" : "failed", sum);
  return ok;
}

}  // namespace

int main() {
  double generic = 0, avx512 = 0;
  if (!run("generic", generic_unit, generic)) return 1;
  if (!has_avx512()) {
    std::puts("avx512 unit: linked, not run, the processor has no AVX-512");
    return 0;
  }
  if (!run("avx512", avx512_unit, avx512)) return 1;
  return std::fabs(generic - avx512) <= 1e-6 * generic ? 0 : 1;
}
