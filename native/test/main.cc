// Runs the native tests; an argument selects those whose names contain it.
#include "test/harness.h"

int main(int argc, char** argv) { return meshwork::test::runAll(argc > 1 ? argv[1] : nullptr); }
