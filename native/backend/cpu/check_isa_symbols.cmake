# Refuses objects compiled for a wide instruction set that define a mergeable (weak) symbol outside their own namespace:
# the linker may keep that copy for everyone, also on processors that cannot run it. A symbol that names the namespace
# in its template arguments is its own, too.
# cmake -DNM=nm -DISA=avx2 -DOBJECTS=a.o,b.o -P check_isa_symbols.cmake
string(REPLACE "," ";" objects "${OBJECTS}")
string(LENGTH "${ISA}" length)
foreach(object IN LISTS objects)
  execute_process(COMMAND ${NM} --defined-only ${object} OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${NM} cannot read ${object}")
  endif()
  string(REGEX MATCHALL "[0-9a-f]+ [WVu] [^\n]+" weak "${symbols}")
  list(FILTER weak EXCLUDE REGEX "[^0-9]${length}${ISA}")
  if(weak)
    string(REPLACE ";" "\n  " weak "${weak}")
    message(FATAL_ERROR "${object} defines mergeable symbols outside of meshwork::${ISA} (see kernel_list.h):\n  ${weak}")
  endif()
endforeach()
