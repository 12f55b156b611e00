// Which instruction sets this build has and this machine can run, best first.
#pragma once

#include "attention.h"

namespace pagoda {

constexpr int kMaxInstructionSets = 5;

struct InstructionSets {
    const KernelTable* tables[kMaxInstructionSets];
    int count;
};

const InstructionSets& available_instruction_sets();

}  // namespace pagoda
