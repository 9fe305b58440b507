// Carries the precompiled header; CMake compiles a header only for a target with a source.
