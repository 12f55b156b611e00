// Asks the processor, and for tile registers the operating system, which kernel tables may run.
//
// Compiled without SIMD flags. Knows feature names and the names of the tables; knows nothing of what they compute.
#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pagoda {

extern const KernelTable kBaselineKernels;

#if defined(__x86_64__)

extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512Bf16Kernels;
extern const KernelTable kAmxKernels;

namespace {

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Every processor with the dot instruction for bf16 has that for bytes.
bool has_avx512_bf16() {
    return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}

bool processor_has_tiles() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    return (edx & kAmxBf16) && (edx & kAmxTile) && (edx & kAmxInt8);
}

// Linux keeps tile registers off until a process asks: their state makes every context switch dearer.
bool system_grants_tiles() {
    constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

bool has_amx() { return has_avx512_bf16() && processor_has_tiles() && system_grants_tiles(); }

}  // namespace

#endif

namespace {

void add(InstructionSets& sets, const KernelTable& table) { sets.tables[sets.count++] = &table; }

InstructionSets detect() {
    InstructionSets sets{};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (has_amx()) add(sets, kAmxKernels);
    if (has_avx512_bf16()) add(sets, kAvx512Bf16Kernels);
    if (has_avx512()) add(sets, kAvx512Kernels);
    if (has_avx2()) add(sets, kAvx2Kernels);
#endif
    add(sets, kBaselineKernels);
    return sets;
}

}  // namespace

const InstructionSets& available_instruction_sets() {
    static const InstructionSets sets = detect();
    return sets;
}

}  // namespace pagoda
