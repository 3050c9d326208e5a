"use strict";
// Charts: each specification stands in the page as JSON. `ast` keeps Vega from compiling code.
for (const place of document.querySelectorAll(".chart")) {
  const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
  vegaEmbed(place, spec, { actions: false, ast: true, renderer: "svg", defaultStyle: true });
}
// Tables: a click on a heading sorts by that column; a second click turns the order round.
for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.order ?? row.cells[column].textContent.trim();
    const compared = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === ""); // Empty cells stay last.
      const numbers = Number(a) - Number(b);
      return (down ? -1 : 1) * (Number.isNaN(numbers) ? a.localeCompare(b) : numbers);
    };
    [...body.rows].sort((a, b) => compared(value(a), value(b))).forEach((row) => body.append(row));
  });
}
