(function () {
  "use strict";
  // every module in every format of two runs: sort, filter, numbers of one cell
  document.querySelectorAll("table.changes").forEach(function (table) {
    var body = table.tBodies[0], rows = Array.from(body.rows), heads = Array.from(table.tHead.rows[0].cells);
    var section = table.closest("section"), filters = section.querySelector(".filters");
    var input = filters.querySelector(".find"), count = filters.querySelector(".count"), readout = filters.querySelector(".readout");
    filters.hidden = false;
    input.addEventListener("input", function () {
      var wanted = input.value.toLowerCase(), shown = 0;
      rows.forEach(function (row) {
        row.hidden = row.cells[0].textContent.toLowerCase().indexOf(wanted) < 0;
        shown += row.hidden ? 0 : 1;
      });
      count.textContent = shown < rows.length ? shown + " of " + rows.length : "";
    });
    heads.forEach(function (head, column) {
      if (!head.dataset.sort) { return; }
      var control = document.createElement("button");
      control.type = "button";
      control.textContent = head.textContent;
      head.textContent = "";
      head.appendChild(control);
      function value(row) {
        var cell = row.cells[column];
        return head.dataset.sort === "v" ? Number(cell.dataset.v) : cell.textContent;
      }
      control.addEventListener("click", function () {
        var first = column < 3 ? "ascending" : "descending", other = column < 3 ? "descending" : "ascending";
        var order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach(function (h) { h.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", order);
        rows.slice().sort(function (a, b) {
          var x = value(a), y = value(b);
          return (order === "ascending" ? 1 : -1) * (x < y ? -1 : x > y ? 1 : 0);
        }).forEach(function (row) { body.appendChild(row); });
      });
    });
    function tell(cell) {
      var head = heads[cell.cellIndex].textContent, name = cell.parentNode.cells[0].textContent;
      readout.textContent = cell.dataset.d ? name + " at " + head + ": " + cell.dataset.d : name + ": " + cell.textContent;
    }
    ["mousemove", "click", "focusin"].forEach(function (kind) {
      body.addEventListener(kind, function (event) {
        var cell = event.target.closest("td, th");
        if (cell) { tell(cell); }
      });
    });
    // one stop of the tab key; from there the arrow keys
    var current = rows[0].cells[0];
    current.tabIndex = 0;
    body.addEventListener("keydown", function (event) {
      var cell = event.target.closest("td, th"), row = cell.parentNode, next = null;
      if (event.key === "ArrowRight") { next = cell.nextElementSibling; }
      if (event.key === "ArrowLeft") { next = cell.previousElementSibling; }
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        do { row = event.key === "ArrowDown" ? row.nextElementSibling : row.previousElementSibling; } while (row && row.hidden);
        next = row && row.cells[cell.cellIndex];
      }
      if (!next) { return; }
      event.preventDefault();
      current.removeAttribute("tabindex");
      current = next;
      next.tabIndex = 0;
      next.focus();
    });
  });
})();
