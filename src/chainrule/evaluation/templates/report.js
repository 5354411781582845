(function () {
  "use strict";
  var root = document.documentElement;
  var chinese = document.getElementById("lang-zh");
  var english = document.getElementById("lang-en");
  var titles = { en: root.dataset.titleEn, zh: root.dataset.titleZh };
  function apply() {
    var language = chinese.checked ? "zh" : "en";
    root.lang = language === "zh" ? "zh-Hans" : "en";
    document.title = titles[language];
    document.querySelectorAll("[data-en][data-zh]").forEach(function (drawing) {
      drawing.setAttribute("aria-label", drawing.dataset[language]);
    });
  }
  var asked = new URLSearchParams(location.search).get("lang");
  var preferred = asked || (navigator.languages && navigator.languages[0]) || navigator.language || "en";
  (/^zh/i.test(preferred) ? chinese : english).checked = true;
  chinese.addEventListener("change", apply);
  english.addEventListener("change", apply);
  apply();
  var opened = [];
  window.addEventListener("beforeprint", function () {
    opened = Array.prototype.filter.call(document.querySelectorAll("details"), function (part) { return !part.open; });
    opened.forEach(function (part) { part.open = true; });
  });
  window.addEventListener("afterprint", function () {
    opened.forEach(function (part) { part.open = false; });
  });
})();
