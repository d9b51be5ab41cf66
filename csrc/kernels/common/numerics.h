// Constants of the softmax.
#pragma once

namespace sage {

constexpr float kLog2e = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

}  // namespace sage
