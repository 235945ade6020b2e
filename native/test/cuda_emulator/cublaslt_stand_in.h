// A stand-in for cuBLASLt on the CPU: proves that descriptors, layouts and pointers say what a product means, no more.
#pragma once

namespace meshwork::test {

// While one lives, loadCublasLt() finds the stand-in.
class CublasLtStandIn {
 public:
  CublasLtStandIn();
  ~CublasLtStandIn();
  CublasLtStandIn(const CublasLtStandIn&) = delete;

  int products() const;     // that it has computed
  int living() const;       // handles, descriptors, layouts and preferences that have not been destroyed
  int heuristics() const;   // how often it was asked for an algorithm
  void refuseAlgorithms();  // from now on heuristics find none
};

}  // namespace meshwork::test
