# cmake -DPRESSES=<files> -DOUTPUT=<file> -P EmbedLibrary.cmake
# Writes {name, path as messages show it, source}, for each file in alphabetical order.
list(SORT PRESSES)
set(text "")
foreach(file IN LISTS PRESSES)
  get_filename_component(name ${file} NAME_WE)
  file(READ ${file} source)
  string(APPEND text "{\"${name}\", \"<library>/${name}.kv\", R\"kv(${source})kv\"},\n")
endforeach()
file(WRITE ${OUTPUT} "${text}")
