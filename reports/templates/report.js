(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("data").textContent);
  var root = document.documentElement;

  // theme: follows the system until the button is used
  var button = document.getElementById("theme");
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function isDark() { return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches; }
  function name() { button.textContent = isDark() ? "Light" : "Dark"; }
  button.hidden = false;
  name();
  button.addEventListener("click", function () { root.dataset.theme = isDark() ? "light" : "dark"; name(); });

  function value(row, column, kind) {
    var cell = row.children[column];
    if (kind === "index") { return Number(row.id.split("-").pop()); }
    if (kind === "number") { return Number(cell.dataset.v); }
    return cell.textContent;
  }

  document.querySelectorAll(".model-section").forEach(function (section) {
    var table = section.querySelector(".heat");
    var body = table.tBodies[0];
    var rows = Array.from(body.rows);
    var heads = Array.from(table.tHead.rows[0].cells);

    // sorting
    heads.forEach(function (head, column) {
      var kind = head.dataset.sort;
      if (!kind) { return; }
      var control = document.createElement("button");
      control.type = "button";
      control.textContent = head.textContent;
      head.textContent = "";
      head.appendChild(control);
      control.addEventListener("click", function () {
        var up = head.getAttribute("aria-sort") === "ascending";
        var first = kind === "number" ? "descending" : "ascending";
        var order = head.hasAttribute("aria-sort") ? (up ? "descending" : "ascending") : first;
        heads.forEach(function (h) { h.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", order);
        var sign = order === "ascending" ? 1 : -1;
        rows.slice().sort(function (a, b) {
          var x = value(a, column, kind), y = value(b, column, kind);
          return sign * (x < y ? -1 : x > y ? 1 : 0);
        }).forEach(function (row) { body.appendChild(row); });
      });
    });

    // filtering
    var filters = section.querySelector(".filters");
    filters.hidden = false;
    var input = filters.querySelector("input"), shown = filters.querySelector("output");
    input.addEventListener("input", function () {
      var wanted = input.value.toLowerCase(), count = 0;
      rows.forEach(function (row) {
        var text = (row.cells[0].textContent + " " + row.cells[1].textContent).toLowerCase();
        var match = text.indexOf(wanted) >= 0;
        row.hidden = !match;
        count += match ? 1 : 0;
      });
      shown.textContent = wanted ? count + " of " + rows.length : "";
    });

    // what if: the bits of a precomputed point of the front
    var box = section.querySelector(".whatif");
    if (!box) { return; }
    var front = data.models[Number(section.dataset.model)].front;
    var slider = box.querySelector("input"), out = box.querySelector("output");
    var chosen = rows.map(function (row) { return row.querySelector(".bits").dataset.v; });
    var nearest = 0, mean = Number(box.dataset.avg);
    front.forEach(function (p, i) { if (Math.abs(p.avg - mean) < Math.abs(front[nearest].avg - mean)) { nearest = i; } });
    slider.value = nearest;
    box.hidden = false;
    function show(bits) {
      rows.forEach(function (row, i) {
        var cell = row.querySelector(".bits");
        cell.dataset.v = bits[i];
        cell.querySelector("strong").textContent = bits[i];
        row.querySelectorAll("td[data-b]").forEach(function (td) {
          td.classList.toggle("pick", td.dataset.b === bits[i]);
        });
      });
    }
    function pick() {
      var p = front[Number(slider.value)];
      show(Array.from(p.bits).map(function (c) { return c === "g" ? "16" : c; }));
      out.textContent = p.avg.toFixed(2) + " bits, " + p.mb.toFixed(2) + " MB, predicted loss " +
        p.drop.toFixed(1) + " points (" + p.low.toFixed(1) + " to " + p.high.toFixed(1) +
        "). As a plan: vitsense plan --budget avg-bits=" + p.avg.toFixed(3);
    }
    slider.addEventListener("input", pick);
    box.querySelector(".reset").addEventListener("click", function () { slider.value = nearest; show(chosen); out.textContent = ""; });
  });

  // printing shows everything
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (d) { d.open = true; });
  });
})();
