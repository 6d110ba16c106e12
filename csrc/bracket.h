// Where a selection's threshold is in a sorted sample: the arithmetic that the CPU's selections share.
#pragma once
#include <cmath>

#include "ranking.h"

namespace cpr {

// Half the width of a bracket around rank `place` of `size`: so many standard deviations of the rank that a
// sample gives, and one for rounding; `least` is added to the variance, which vanishes at the ends.
template <class Real>
inline Real bracket_spread(Real place, Real size, Real deviations, Real least) {
  const Real variance = place * (Real(1) - place / size);
  return Real(1) + deviations * std::sqrt((variance > Real(0) ? variance : Real(0)) + least);
}

// Places in a sorted sample, the best at 0.
struct Places {
  int high;  // -1: the threshold may lie above the whole sample
  int low;   // the sample's size: or below it
};

// Between which places of a sample of SIZE of n the m-th best almost surely lies.
template <int SIZE, class Real>
inline Places bracket_places(Real m, Real n, Real deviations) {
  const Real place = m * (Real(SIZE) / n);
  const Real spread = bracket_spread(place, Real(SIZE), deviations, Real(0.25));
  const int high = static_cast<int>(place - spread) - 1, low = static_cast<int>(place + spread);
  return {high < -1 ? -1 : high < SIZE ? high : SIZE - 1, low < SIZE ? low : SIZE};
}

}  // namespace cpr
