/* What cppcheck cannot see of other libraries' headers: their loops. */
#define json_array_foreach(a, i, v) for (i = 0; (v = json_array_get(a, i)); i++)
#define json_object_foreach(o, k, v) for (k = next_key(o, 0); (v = json_object_get(o, k)); k = next_key(o, k))
