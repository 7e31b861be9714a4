// The instruction set's own rate: multiplications and additions of float32 in the widest vectors, in registers alone,
// fused where the processor can. Compiled and called by measuring.py.

#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16, SUMS = 24;
#elif defined(__AVX__)
constexpr int LANES = 8, SUMS = 12;
#elif defined(__aarch64__)
constexpr int LANES = 4, SUMS = 24;
#else
constexpr int LANES = 4, SUMS = 12;
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));

// SUMS chains that do not wait for one another: more than the units that add times the cycles that one sum takes
static void multiply_and_add(long rounds, float factor, float* out) {
    Vector sum[SUMS], a = Vector{} + factor, b = Vector{} + (1.f - factor);
    for (int i = 0; i < SUMS; i++) sum[i] = a * (float)i;  // different: else one chain would do for all
    for (long round = 0; round < rounds; round++)
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; i++) sum[i] = sum[i] * a + b;  // towards 1: no overflow, nothing denormal
    Vector total{};
    for (int i = 0; i < SUMS; i++) total += sum[i];
    for (int i = 0; i < LANES; i++) *out += total[i];
}

// -> floating-point operations that were done; `out` so that no compiler leaves them out
extern "C" double burnish_peak(int threads, long rounds, float factor, float* out) {
    std::vector<float> outs(threads);
    std::vector<std::thread> others;
    for (int i = 1; i < threads; i++) others.emplace_back(multiply_and_add, rounds, factor, &outs[i]);
    multiply_and_add(rounds, factor, &outs[0]);
    for (auto& thread : others) thread.join();
    for (float value : outs) *out += value;
    return 2. * SUMS * LANES * rounds * threads;
}
