# Builds ggml's CPU plug-in for AVX2 alone, in place of one for each of fourteen
# instruction sets: what is built is tested and thrown away. A variable hides the
# cache entry of the same name, which the crate's build script sets.
set(GGML_CPU_ALL_VARIANTS OFF)
